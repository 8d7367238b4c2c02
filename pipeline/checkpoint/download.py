"""Downloads LongCat checkpoints from the Hugging Face Hub: checks before any weight, and resumes broken downloads."""

from __future__ import annotations

import errno
import io
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.checkpoint.info import inspect_checkpoint
from pipeline.checkpoint.layout import FASTVIDEO, LAYOUTS, Layout, choose_layout
from pipeline.checkpoint.safetensors_files import (
    Stored,
    check_weights,
    choose_files,
    incomplete,
    merge,
    read_json,
)
from pipeline.checkpoint.shape import ModelShape
from pipeline.checkpoint.trust import LARGEST_JSON, check_index, is_known
from pipeline.machine.paths import expand_user, is_there
from pipeline.machine.proxies import settle_proxies
from pipeline.request.video import Cancelled

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}", re.ASCII)
_SPARE_BYTES = 2**30  # left free on the disk, for videos and other programs

NEITHER = "{text} is neither a folder of this machine nor a name on the Hugging Face Hub, such as org/model"
UNKNOWN = (
    "there is neither a folder {repo} here nor a public model of this name on the Hugging Face Hub; check the name, or "
    "log in with `hf auth login` for a private one"
)
GATED = "{repo} is gated: accept its terms on https://huggingface.co/{repo} and log in with `hf auth login`"
OFFLINE = (
    "there is no folder {repo} here, and the Hugging Face Hub, which may have a model of this name, cannot be reached; "
    "check the path or the connection"
)
HUB_FAULT = "the Hugging Face Hub answered for {repo}: {reason}; try again later"
NOT_LONGCAT = "{repo} is not a LongCat checkpoint as released or in FastVideo's layout: {reason}; choose another"
NO_SPACE = (
    "{repo} takes {needed:.1f} GiB more and {free:.1f} GiB are free in {folder}; free some, or set HF_HOME to another "
    "disk"
)
NOT_WRITTEN = "{repo} could not be saved: {reason}; check space and permissions"


@dataclass(frozen=True)
class Progress:
    """Bytes of the checkpoint fetched so far and in total, and the file that is being fetched."""

    done: int
    total: int
    file: str


OnProgress = Callable[[Progress], None]
CheckSize = Callable[[ModelShape, str], None]


def is_hub_id(text: str) -> bool:
    """Whether a model's name refers to the Hub: it has the form org/name, and no such folder exists here."""
    return bool(_HUB_ID.fullmatch(text)) and not is_there(Path(text))


def fetch_checkpoint(
    text: str,
    check: CheckSize | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> Path:
    """Return the checkpoint folder that `text` names, a local folder or a Hub id. Fetches it if necessary.

    Args:
        check: called with the model's size and name before anything large is fetched. It raises ValueError if the
            model cannot run; `pipeline.estimate.refusal.check_weights_fit` is such a check.
        on_progress: called about every 10 MB; may raise `Cancelled`. Fetched files are kept, and a later call resumes.

    Raises:
        ValueError: no such model, no access, no connection, an unusable proxy, not a LongCat checkpoint, too little
            disk or memory. One sentence with the remedy.
    """
    text = str(text).strip()
    if not is_hub_id(text):
        if "/" not in text and not is_there(expand_user(text)):
            raise ValueError(NEITHER.format(text=repr(text)))
        return inspect_checkpoint(text).path
    settle_proxies()
    with _sentences(text):
        return _fetch(text, check, on_progress)


def _fetch(repo: str, check: CheckSize | None, on_progress: OnProgress) -> Path:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    try:
        files, revision = _list_files(HfApi(), repo)
    except (OfflineModeIsEnabled, HTTPError) as error:
        if isinstance(error, HfHubHTTPError):  # the Hub answered, so there is a connection
            raise
        # Without a connection, a checkpoint that is already here can still be used.
        return inspect_checkpoint(_fetched_before(repo)).path
    layout = choose_layout(lambda name: any(file.startswith(f"{name}/") for file in files))
    files = _of_layout(files, layout)
    _check_files(repo, files, layout)
    # No revision is passed, so that the cache records which commit is current: offline look-ups need that record.
    file = Path(hf_hub_download(repo, layout.first))
    index = read_json(file, file.parent)
    if index.get("_class_name") != layout.first_class:
        raise ValueError(NOT_LONGCAT.format(repo=repo, reason=f"{layout.first} names {index.get('_class_name')!r}"))
    if layout is FASTVIDEO:
        check_index(index, file.parent)
    get: dict[str, Any] = {"repo_id": repo, "revision": revision}
    files = _chosen(repo, revision, files, layout)
    plan = [hf_hub_download(filename=name, dry_run=True, **get) for name in files]
    missing = sum(files[file.filename] for file in plan if file.will_download)
    _check_disk(repo, missing, Path(plan[0].local_path))
    if missing:
        shape = _shape(HfApi(), repo, revision, files, layout)
        if check is not None:
            check(shape, repo)

    total = sum(files.values())
    done = total - missing
    for file in sorted(plan, key=lambda file: files[file.filename]):
        if not file.will_download:
            continue
        hf_hub_download(filename=file.filename, tqdm_class=_bar(done, total, file.filename, on_progress), **get)
        done += files[file.filename]
        on_progress(Progress(done, total, file.filename))
    return inspect_checkpoint(_root(plan[0].local_path, plan[0].filename)).path


def _list_files(api: Any, repo: str) -> tuple[dict[str, int], str]:
    """Return the size in bytes of each file of the checkpoint, and the commit. Other files are never fetched."""
    info = api.model_info(repo, files_metadata=True)
    files = {file.rfilename: file.size or 0 for file in info.siblings or () if is_known(file.rfilename)}
    return files, info.sha


def _fetched_before(repo: str) -> Path:
    """The folder of a checkpoint in the cache. Raises LocalEntryNotFoundError if it was never fetched."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    for layout in LAYOUTS:
        with suppress(LocalEntryNotFoundError):
            return _root(hf_hub_download(repo, layout.first, local_files_only=True), layout.first)
    raise LocalEntryNotFoundError(repo)


def _root(file: str, name: str) -> Path:
    """The folder of a checkpoint, from the path of the file in it that has this name."""
    return Path(file).parents[len(Path(name).parts) - 1]


def _of_layout(files: Mapping[str, int], layout: Layout) -> dict[str, int]:
    """Without the transformer of the other layout, which may lie beside it."""
    others = tuple(f"{other.transformer}/" for other in LAYOUTS if other is not layout)
    return {name: size for name, size in files.items() if not name.startswith(others)}


def _check_files(repo: str, files: dict[str, int], layout: Layout) -> None:
    needed = [layout.first, *layout.configs.values(), "tokenizer/tokenizer.json"]
    absent = [name for name in needed if name not in files]
    absent += [
        f"{folder}/*.safetensors"
        for folder in layout.weights.values()
        if not any(name.startswith(f"{folder}/") and name.endswith(".safetensors") for name in files)
    ]
    if absent:
        raise ValueError(NOT_LONGCAT.format(repo=repo, reason=f"{absent[0]} is missing"))
    for name, size in files.items():
        if name.endswith(".json") and size > LARGEST_JSON:
            raise ValueError(NOT_LONGCAT.format(repo=repo, reason=f"{name} has {size} bytes"))


def _check_disk(repo: str, missing: int, target: Path) -> None:
    folder = next(parent for parent in target.parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if missing + _SPARE_BYTES * (missing > 0) > free:
        raise ValueError(NO_SPACE.format(repo=repo, needed=missing / 2**30, free=free / 2**30, folder=folder))


def _chosen(repo: str, revision: str, files: Mapping[str, int], layout: Layout) -> dict[str, int]:
    """Without sets of weights beside those that count."""
    kept = dict(files)
    for part in layout.weights.values():
        names = [name.removeprefix(f"{part}/") for name in files if name.startswith(f"{part}/")]
        where = f"{repo}/{part}"
        counted = choose_files(names, where, partial(_read, repo, revision, part))
        kept = {
            name: size
            for name, size in kept.items()
            if not (name.startswith(f"{part}/") and name.endswith(".safetensors"))
            or name.removeprefix(f"{part}/") in counted
        }
    return kept


def _read(repo: str, revision: str, part: str, name: str) -> dict[str, Any]:
    from huggingface_hub import hf_hub_download

    file = Path(hf_hub_download(repo, f"{part}/{name}", revision=revision))
    return read_json(file, file.parents[1])


def _shape(api: Any, repo: str, revision: str, files: Iterable[str], layout: Layout) -> ModelShape:
    """From the configurations and the headers of the weight files, of which only the first kilobytes are asked for.
    Raises ValueError where they do not hold LongCat's weights."""
    from huggingface_hub.errors import SafetensorsParsingError

    configs, parameters = {}, {}
    for part, folder in layout.weights.items():
        where, stored = f"{repo}/{folder}", dict[str, Stored]()
        configs[part] = _read(repo, revision, folder, "config.json")
        for name in files:
            if name.startswith(f"{folder}/") and name.endswith(".safetensors"):
                try:
                    header = api.parse_safetensors_file_metadata(repo, name, revision=revision).tensors
                    weights = {key: Stored(str(one.dtype), tuple(one.shape)) for key, one in header.items()}
                except (SafetensorsParsingError, TypeError, AttributeError):
                    raise ValueError(incomplete(repo, f"{name} has a damaged header")) from None
                merge(stored, weights, where)
        parameters[part] = check_weights(folder, configs[part], stored, where)
    return ModelShape.of(repo, configs, parameters)


def _bar(before: int, total: int, file: str, on_progress: OnProgress) -> type[Any]:
    """A progress bar class for huggingface_hub that reports to `on_progress` and draws nothing."""

    class Bar(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*arguments, **{**options, "file": io.StringIO()})
            self._tell()

        def display(self, *arguments: Any, **options: Any) -> None:
            pass

        def update(self, n: float = 1) -> None:
            self.n += n
            self._tell()

        def _tell(self) -> None:
            on_progress(Progress(min(total, before + int(self.n)), total, file))

    return Bar


@contextmanager
def _sentences(repo: str) -> Iterator[None]:
    """Turn errors of the Hub, the network and the disk into a ValueError of one sentence."""
    from huggingface_hub import errors

    try:
        yield
    except Cancelled:
        raise
    except errors.GatedRepoError:
        raise ValueError(GATED.format(repo=repo)) from None
    except errors.RepositoryNotFoundError:
        raise ValueError(UNKNOWN.format(repo=repo)) from None
    except errors.HfHubHTTPError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(HUB_FAULT.format(repo=repo, reason=reason)) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HTTPError):
        raise ValueError(OFFLINE.format(repo=repo)) from None
    except OSError as error:
        reason = "no space left on the disk" if error.errno == errno.ENOSPC else " ".join(str(error).split())[:200]
        raise ValueError(NOT_WRITTEN.format(repo=repo, reason=reason)) from None
