"""What the engine process runs in the tests: the fake pipeline, and prompts that make it end in every possible way.

It is imported in the child, so it says nothing to the test but through the pipeline's own channels.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

from fake_pipeline import FakePipeline

NOWHERE = "nowhere"


class Unpicklable(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.hook = lambda: None


class Lost:
    """What cannot be freed once the GPU's context is lost, such as pinned memory: trying ends the process."""

    def __del__(self) -> None:
        os.abort()


ERRORS = {
    "refuse": ValueError("width 1 is odd; try 2"),
    "break": Unpicklable("kernel broke"),
    "out of memory": type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 9 GiB"),
    "illegal access": RuntimeError("CUDA error: an illegal memory access was encountered\nSearch for it in the manual"),
    "launch": type("AcceleratorError", (RuntimeError,), {})("unspecified launch failure"),
    "bad value": RuntimeError("CUDA error: invalid argument"),
    "full": OSError(28, "No space left on device"),
}


class FaultyPipeline(FakePipeline):
    """The prompt says what happens at the second step; "die" ends the process."""

    def generate_frames(self, request, on_step, output):
        def watched(update):
            if update.phase == "denoise" and update.step == 2:
                _fail(request.prompt)
            on_step(update)

        return super().generate_frames(request, watched, output)


def _fail(prompt: str) -> None:
    if prompt == "die by kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if prompt == "die by exit":
        os._exit(3)
    if prompt == "die by crash":
        ctypes.string_at(0)
    held = Lost() if prompt == "illegal access" else None  # noqa: F841
    if prompt in ERRORS:
        raise ERRORS[prompt]


def load(say, step_seconds: float = 0.02, path: str = "") -> FaultyPipeline:
    say("Reading shards")
    if Path(path).name == NOWHERE:
        raise ValueError(f"nothing can be loaded from {NOWHERE}; check the path")
    return FaultyPipeline(step_seconds)


def load_flaky(say, count: str, failures: int) -> FaultyPipeline:
    """Ends the process while loading, the first `failures` times; `count` is a file that counts."""
    tries = len(Path(count).read_text()) if Path(count).exists() else 0
    Path(count).write_text("x" * (tries + 1))
    if tries < failures:
        os._exit(7)
    return FaultyPipeline()


def load_slowly(say, seconds: float) -> FaultyPipeline:
    say("Reading shards")
    time.sleep(seconds)
    return FaultyPipeline()


def describe(pipeline) -> list[dict]:
    """Something to call."""
    return [{"pid": os.getpid(), "requests": len(pipeline.requests)}]
