"""The web page: `python app.py` serves it on http://localhost:7860."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

# Gradio reads these when it is imported. The page works offline and reports its use to nobody.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

# First, because it handles Ctrl-C while the others are imported.
from pipeline import _start
from pipeline.machine.proxies import settle_proxies

if __name__ == "__main__":
    try:
        settle_proxies()  # Gradio reads them when it is imported
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

# isort: split
from gradio.utils import get_upload_folder
from starlette.middleware import Middleware

from pipeline import EMBEDDED_CHECKPOINT, inspect_checkpoint
from pipeline.cli.engines import Engines, add_engines
from pipeline.cli.options import add_lora_dir, add_weights
from pipeline.machine.paths import RESCUE, expand_user
from pipeline.request.sentences import VisibleFormatter, one_line
from ui import Look, Worker, build_page
from ui.access.address import check_address, taken
from ui.access.connections import bound_connections, raise_handle_limit, spare_log
from ui.access.guard import Guard, MaySee
from ui.access.hosts import ALLOWED, Hosts
from ui.access.login import VARIABLE, read_logins
from ui.api.publish import Page
from ui.enhance import add_enhancer, read_enhancer
from ui.jobs.worker import MAX_WAITING
from ui.premade import Premade
from ui.storage.disk import UPLOADS, Disk, own_folder, rescue_folder
from ui.storage.files import PRIVATE
from ui.tasks.pictures import FOLDER as PICTURES

# Gradio keeps a quarter of a megabyte of each, also of a single call of the API, and of 10,000 unless it is told. The
# state of the one that was used longest ago is forgotten: which run its page shows, and how much of the history.
MOST_SESSIONS = 500
# Events that Gradio has under way at once, and 40 unless it is told. A call or a page that waits for its job is one all
# that time, so a full queue of jobs would keep every other button and call from being heard.
MOST_EVENTS = MAX_WAITING + 100
GRADIO_FOLDER = "GRADIO_TEMP_DIR"  # environment variable that Gradio reads whenever it takes a file in


def main(arguments: list[str] | None = None) -> int:
    """Serve until the program ends. Returns its exit code: 2 for bad options, 1 for a port in use or not allowed,
    130 for Ctrl-C."""
    try:
        _start.end()
        return _main(arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _main(arguments: list[str] | None) -> int:
    options = _parser().parse_args(arguments)
    _log_to_stderr()
    raise_handle_limit()
    logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio asks itself whether it is up
    try:
        checkpoint = inspect_checkpoint(options.model_path, options.lora_dir)
        engines = Engines.read(options)
        output_dir = writable_folder(options.output_dir)
        uploads = uploads_base(output_dir)
        check_temporary_folder()
        options.auth = read_logins(options.auth or (), options.auth_file)
        hosts = Hosts.of_server(options.host, options.allow_host, options.share)
        writer = read_enhancer(options)
        if options.mcp:
            check_mcp(options.auth)
        check_address(options.host, options.port)
    except (ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1

    # `docker stop` and process managers send this signal; the default handler would skip the clean-up below
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if (rescued := rescue_folder(output_dir)) is not None:
        os.environ[RESCUE] = str(rescued)  # for the engine
    worker = Worker(engines.begin(checkpoint), output_dir, checkpoint.name).start()
    try:
        with uploads_in(uploads) as folder:
            disk = Disk(output_dir, int(options.disk_budget * 1e9), folder, rescued)
            switch, first = may_switch(options), Premade.read()
            page = build_page(
                checkpoint, worker, disk, device=engines.device, model_switch=switch, shown_first=first, enhancer=writer
            )
            serve(
                page,
                output_dir,
                host=options.host,
                port=options.port,
                share=options.share,
                logins=options.auth,
                max_upload=options.max_upload * 2**20,
                mcp=options.mcp,
                hosts=hosts,
                may_see=lambda job_id, owner: worker.find(job_id, owner) is not None,
                disk=disk,
                public=[] if first.job is None else [first.job.folder],
            )
    except OSError as error:
        reason = one_line(error) if error.errno else taken(options.host, options.port)  # Gradio's own has no number
        print(f"error: {reason}", file=sys.stderr)
        return 1
    finally:
        worker.close()
        engines.close()
        if rescued is not None:
            del os.environ[RESCUE]
            with suppress(OSError):  # there is something in it
                rescued.rmdir()
        signal.signal(signal.SIGTERM, before)
    return 0


def serve(
    page: Page,
    output_dir: Path,
    *,
    host: str,
    port: int,
    share: bool = False,
    block: bool = True,
    logins: Sequence[tuple[str, str]] = (),
    max_upload: int = 256 * 2**20,
    mcp: bool = False,
    hosts: Hosts | None = None,
    may_see: MaySee = lambda job_id, owner: True,
    disk: Disk | None = None,
    public: Sequence[Path] = (),
) -> None:
    """Start the server. Only uploads and the media of jobs are served; no run is recorded in the browser.

    block: stay until interrupted.
    logins: names and passwords, of which a visitor must enter one; without any, everybody is let in.
    max_upload: largest size of one uploaded file, in bytes.
    mcp: offer the endpoints as tools of the Model Context Protocol.
    hosts: the names of this server; None for the address that it listens on.
    may_see: called with a job's id and an owner; returns whether the job belongs to the owner.
    disk: says whether there is room for an upload, and tidies up after each.
    public: folders whose files everybody may fetch.

    Raises OSError if it cannot listen there.
    """
    guard = Middleware(
        Guard,
        output_dir=output_dir,
        cache=Path(get_upload_folder()),
        hosts=Hosts.of_server(host) if hosts is None else hosts,
        may_see=may_see,
        disk=disk,
        presence=page.presence,
        space="SPACE_ID" in os.environ,
    )
    settle_proxies(host)  # Gradio asks itself whether it is up
    look = Look.default()
    page.queue().launch(
        server_name=f"[{host}]" if ":" in host else host,
        server_port=port,
        theme=look.theme,
        css=look.css,
        head=look.head,
        allowed_paths=[str(output_dir), str(PICTURES), *map(str, public)],  # the guard narrows the first down
        app_kwargs={"middleware": [guard]},
        auth=list(logins) or None,
        max_file_size=max_upload,
        mcp_server=mcp,
        blocked_paths=[str(output_dir / PRIVATE)],
        footer_links=["api", "settings"],
        run_history=False,
        state_session_capacity=MOST_SESSIONS,
        max_threads=MOST_EVENTS,
        share=share,
        ssr_mode=False,
        enable_monitoring=False,
        prevent_thread_lock=True,  # Gradio's own waiting would treat Ctrl-C as a normal end
        quiet=not block,
    )
    bound_connections(page.server)
    if block:
        threading.Event().wait()


def uploads_base(output_dir: Path) -> Path:
    """Where servers have their folders of uploads: what GRADIO_TEMP_DIR names, or in the output folder.

    Raises ValueError when nothing can be written there.
    """
    if base := os.environ.get(GRADIO_FOLDER):
        return writable_folder(Path(base), "folder for uploads", f"set {GRADIO_FOLDER} to another")
    return output_dir / UPLOADS


@contextmanager
def uploads_in(base: Path) -> Iterator[Path]:
    """A folder for what Gradio takes in, of this server alone and as long as it runs: in a shared one it could neither
    be counted nor removed."""
    before = os.environ.get(GRADIO_FOLDER)
    folder = own_folder(base)
    os.environ[GRADIO_FOLDER] = str(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.environ.pop(GRADIO_FOLDER)
        if before is not None:
            os.environ[GRADIO_FOLDER] = before


def writable_folder(path: Path, what: str = "output folder", remedy: str = "choose another with --output-dir") -> Path:
    """The folder, made if need be. Raises ValueError when nothing can be written into it."""
    path = expand_user(path).resolve()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(bytes(2**16))  # a full disk still takes names
    except OSError as error:
        raise ValueError(f"cannot write to the {what} {path} ({error.strerror}); {remedy}") from None
    return path


def check_temporary_folder() -> None:
    """Raise ValueError if temporary files, such as parts of clips, cannot be written."""
    remedy = "set TMPDIR to a folder of your own, on a disk with room"
    try:
        folder = Path(tempfile.gettempdir())
    except FileNotFoundError as error:  # Python found no folder that it can write into
        raise ValueError(f"{error.strerror}; {remedy}") from None
    writable_folder(folder, "folder for temporary files", remedy)


def check_mcp(logins: Sequence[tuple[str, str]] = ()) -> None:
    """Raise ValueError if Gradio's MCP server would not work. With logins it cannot: it calls the page without one."""
    if importlib.util.find_spec("mcp") is None:
        raise ValueError("--mcp needs the package mcp, which is not installed; `make install` adds it")
    if logins:
        raise ValueError("--mcp cannot ask for a login; leave out --mcp, or --auth, --auth-file and " + VARIABLE)


def may_switch(options: argparse.Namespace) -> bool:
    """Whether visitors may load other models: as the options say, by default only if nobody else can reach the page.

    Loading a model can read any folder that the server can read, and can fill the disk.
    """
    if options.model_switch is not None:
        return options.model_switch
    if options.ray is not None:  # its machines have folders of their own
        return False
    alone = options.host in ("127.0.0.1", "localhost", "::1")
    return alone and not options.share and not options.auth and "SPACE_ID" not in os.environ


def gigabytes(text: str) -> float:
    """A size in GB from the command line."""
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; use a number of GB above 0, such as 5")
    return size


def port_number(text: str) -> int:
    """A TCP port from the command line or the environment."""
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; use a number from 1 to 65535, such as 7860")
    return int(text)


def mebibytes(text: str) -> int:
    """A positive size from the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; use a whole number of MiB, such as 256")
    return int(text)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(VisibleFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    spare_log()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Serve the page that makes LongCat videos with dense and with block sparse attention.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    env = os.environ.get
    add = parser.add_argument
    add("--model-path", type=Path, default=EMBEDDED_CHECKPOINT, help="LongCat checkpoint, as released or FastVideo's")
    add("--device", default="auto", help="auto (the GPU with the most memory, or the CPU), cuda, cuda:1 or cpu")
    add("--output-dir", type=Path, default=Path("outputs"), help="folder for videos and reports")
    add("--disk-budget", type=gigabytes, default="5", help="GB that results and uploads may take; then the oldest go")
    add(
        "--host",
        default=env("GRADIO_SERVER_NAME", "127.0.0.1"),
        help="0.0.0.0 listens on every network; also GRADIO_SERVER_NAME",
    )
    add("--port", type=port_number, default=env("GRADIO_SERVER_PORT", "7860"), help="also GRADIO_SERVER_PORT")
    add(
        "--model-switch",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="let the page load other models, from folders of this machine or the Hugging Face Hub; by default only "
        "where it is served to this machine alone",
    )
    add("--auth", action="append", metavar="NAME:PASSWORD", help="ask for this login; repeat it for more of them")
    add(
        "--auth-file",
        type=Path,
        metavar="FILE",
        help=f"logins, one NAME:PASSWORD on each line; {VARIABLE} in the environment takes such lines too",
    )
    add(
        "--allow-host",
        action="append",
        metavar="NAME",
        default=env(ALLOWED, "").split(),
        help="answer to this host name too, as behind a reverse proxy, or to all below *.NAME; repeat it for more. "
        f"IP addresses, localhost, the machine's own name and a Space's need none; also {ALLOWED}, separated by spaces",
    )
    add("--max-upload", type=mebibytes, default=256, metavar="MIB", help="size of one uploaded file, in MiB")
    add("--mcp", action="store_true", help="offer the API to MCP clients at /gradio_api/mcp/; not with a login")
    add("--share", action="store_true", help="open a public link through gradio.live too; needs the internet")
    add_enhancer(parser)
    add_lora_dir(parser)
    add_weights(parser)
    add_engines(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
