"""A live server over a fake pipeline, for the tests of the page and of the API."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fake_pipeline import CHECKPOINT

import app
from pipeline import CheckpointInfo
from ui import Worker, build_page
from ui.engine import EngineProcess

WAIT_SECONDS = 120  # far above what any of this takes, only against hanging


@contextmanager
def running_page(pipeline, output_dir: Path, checkpoint: CheckpointInfo = CHECKPOINT, **options) -> Iterator[str]:
    """Serve the page over `pipeline` (an engine, or a function that loads one into this process) and give its address.

    options: further arguments of `build_page`.
    """
    load = pipeline if callable(pipeline) or isinstance(pipeline, EngineProcess) else lambda say: pipeline
    worker = Worker(load, output_dir, checkpoint.name).start()
    page = build_page(checkpoint, worker, **options)
    port = free_port()
    app.serve(page, output_dir, host="127.0.0.1", port=port, block=False)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        page.close(verbose=False)
        worker.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(condition, what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited {WAIT_SECONDS} s for {what}"
        time.sleep(0.01)
