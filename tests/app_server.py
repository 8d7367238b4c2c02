"""A live server over a fake pipeline, for the tests of the page and of the API."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fake_pipeline import CHECKPOINT, FakePipeline
from programs import ROOT

import app
from pipeline import CheckpointInfo
from pipeline.engine.process import EngineProcess
from ui import Worker, build_page
from ui.premade import NOTHING
from ui.storage.disk import UPLOADS, Disk

WAIT_SECONDS = 120  # far above what any of this takes, only against hanging


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@contextmanager
def running_page(pipeline, output_dir: Path, checkpoint: CheckpointInfo = CHECKPOINT, **options) -> Iterator[str]:
    """Serve the page over `pipeline` (an engine, or a function that loads one into this process) and give its address.

    options: further arguments of `build_page`.
    """
    load = pipeline if callable(pipeline) or isinstance(pipeline, EngineProcess) else lambda say: pipeline
    worker = Worker(load, output_dir, checkpoint.name).start()
    page = build_page(checkpoint, worker, **options)
    port = free_port()
    first = options.get("shown_first", NOTHING)
    public = [] if first.job is None else [first.job.folder]
    app.serve(page, output_dir, host="127.0.0.1", port=port, block=False, public=public)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        page.close(verbose=False)
        worker.close()


@contextmanager
def served(output_dir: Path, pipeline=None, *, model_switch: bool = False, **options) -> Iterator[str]:
    """The page over a fake pipeline, served with `app.serve`'s own options as `app.main` passes them. Uploads go to a
    folder of the server's own below OUTPUT_DIR/.uploads."""
    worker = Worker(lambda say: pipeline or FakePipeline(), output_dir, CHECKPOINT.name).start()
    options.setdefault("may_see", lambda job_id, owner: worker.find(job_id, owner) is not None)
    port = free_port()
    with app.uploads_in(output_dir / UPLOADS) as uploads:
        disk = Disk(output_dir, uploads=uploads)
        page = build_page(CHECKPOINT, worker, disk, model_switch=model_switch)
        app.serve(page, output_dir, host="127.0.0.1", port=port, block=False, disk=disk, **options)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            page.close(verbose=False)
            worker.close()


@contextmanager
def running_program(folder: Path, *command: str | Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """Run a program that serves the page, with app.py's options after its own; give its process and its address.

    Its output goes to FOLDER/log, the videos to FOLDER/outputs.
    """
    address = f"http://127.0.0.1:{(port := free_port())}"
    options = ["--port", str(port), "--output-dir", folder / "outputs"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, *command, *options],
            cwd=ROOT,
            env=os.environ | {"GRADIO_SERVER_NAME": "127.0.0.1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            until(lambda: answers(address) or server.poll() is not None, f"{command[0]} to answer")
            assert server.poll() is None, (folder / "log").read_text()
            yield server, address
        finally:
            server.terminate()
            server.wait()


def answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url).status == 200
    except (urllib.error.URLError, ConnectionError):
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(condition, what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited {WAIT_SECONDS} s for {what}"
        time.sleep(0.01)
