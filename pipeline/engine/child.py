"""The child process that runs a pipeline. `pipeline.engine.process` is the other side.

Both talk over a socket in pickled tuples. Asked: (task, kind, arguments), kind "generate", "call" or "cancel".
Answered: (task, kind, content): any number of "say" and "step", then one "video", "done" or "error". Task 0 is loading.
A second socket carries the file descriptor of a video's decoded frames, which are too large for messages. Signs of life
come all the time.
"""

from __future__ import annotations

import importlib
import logging
import os
import queue
import re
import signal
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

import numpy as np

from pipeline.engine.patience import BEAT_SECONDS
from pipeline.machine.memory import out_of_memory, release_memory
from pipeline.machine.resources import torch_memory
from pipeline.media.write import check_encoder
from pipeline.request.load_options import AS_STORED
from pipeline.request.video import Cancelled, StepUpdate, VideoRequest

log = logging.getLogger("pipeline")

LOADING = 0
MEMORY = -1  # in place of a task number: the message holds readings of PyTorch's allocator
MEMORY_SECONDS = 0.1
BEAT = -2  # instead of a task: a sign of life
PARENT_SECONDS = 1.0

# After these errors every further CUDA call of the process fails, and only a new process helps. The CUDA documentation
# says about each: "the process must be terminated and relaunched".
_FATAL_CUDA = re.compile(
    "illegal memory access|illegal instruction|illegal address|misaligned address|device-side assert|"
    "unspecified launch failure|launch timed out|launch failure|hardware stack error|uncorrectable|"
    "invalid program counter|invalid pc|operation not supported on global/shared address space|"
    "ECCUncorrectable|IllegalAddress|LaunchFailure|unknown error|device is lost|fallen off the bus",
    re.IGNORECASE,
)


class RemoteError(RuntimeError):
    """An error of the child whose type is unknown in this process. `kind` is the name of that type."""

    def __init__(self, text: str, kind: str = "RuntimeError") -> None:
        super().__init__(text, kind)
        self.text, self.kind = text, kind

    def __str__(self) -> str:
        return self.text


def load_longcat(say: Callable[[str], None], path: str, device: str, **weights: Any) -> Any:
    """Load the pipeline for the page. It records attention, so that the page can show it.

    weights: how to keep the weights, see `LongCatPipeline.load`.
    """
    check_encoder()  # every job would fail after minutes of loading
    from pipeline.runs.longcat import LongCatPipeline

    return LongCatPipeline.load(path, device=device, on_message=say, record=True, **weights)


def named(target: str) -> Callable[..., Any]:
    """Import the function that "module:name" refers to."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def portable(error: Exception) -> Exception:
    """Turn an error into one that any process can unpickle. Types that callers distinguish stay; others become text."""
    text = str(error)
    if isinstance(error, Cancelled):
        return Cancelled(text)
    if out_of_memory(error):
        return MemoryError(text)
    if isinstance(error, ValueError):
        return ValueError(text)
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror) if error.errno else OSError(text)
    return RemoteError(text, type(error).__name__)


def fatal(error: Exception) -> bool:
    """Whether the error has destroyed the CUDA context, so that this process can compute nothing more."""
    if isinstance(error, (ValueError, OSError, Cancelled)):
        return False
    cuda = "cuda" in str(error).lower() or type(error).__name__ == "AcceleratorError"
    if cuda and _FATAL_CUDA.search(str(error)):
        return True
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except Exception:
        return True
    return False


def main(messages: int, frames: int) -> None:
    """Serve until the other side is gone. messages, frames: file descriptors of the two sockets."""
    _Child(Connection(messages), socket.socket(fileno=frames)).serve()


class _Child:
    def __init__(self, link: Connection, frames: socket.socket) -> None:
        self._link = link
        self._frames = frames
        self._send_lock = threading.Lock()
        self._tasks: queue.SimpleQueue[tuple[int, str, tuple]] = queue.SimpleQueue()
        self._cancelled = LOADING
        self._parent = os.getppid()

    def serve(self) -> None:
        target, arguments, level = self._link.recv()
        logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
        threading.Thread(target=self._listen, name="engine-listen", daemon=True).start()
        threading.Thread(target=self._beat, name="engine-beat", daemon=True).start()
        try:
            pipeline = named(target)(lambda text: self._send(LOADING, "say", text), **arguments)
        except Exception as error:
            self._send_error(LOADING, error)
            return
        threading.Thread(target=self._report_memory, args=(pipeline.device,), name="engine-memory", daemon=True).start()
        precision = getattr(pipeline, "weights", AS_STORED).precision  # "auto" was settled by loading
        self._send(LOADING, "done", (str(pipeline.device), precision))
        while True:
            task, kind, arguments = self._tasks.get()
            try:
                if kind == "generate":
                    answer = "video", self._generate(pipeline, task, *arguments)
                else:
                    answer = "done", named(*arguments)(pipeline)
            except Exception as error:
                self._send_error(task, error)
            else:
                release_memory()
                self._send(task, *answer)

    def _generate(self, pipeline: Any, task: int, request: VideoRequest, output: Path) -> tuple[Any, tuple]:
        def on_step(update: StepUpdate) -> None:
            preview = None if update.preview is None else update.preview()
            self._send(task, "step", (update.phase, update.step, update.total, update.seconds, preview))
            if self._cancelled == task:
                raise Cancelled

        result, frames = pipeline.generate_frames(request, on_step, output)
        self._send_frames(frames)
        return result, frames.shape

    def _send_frames(self, frames: np.ndarray) -> None:
        # the memory has no name in a file system, so nothing is left behind if either process dies
        if hasattr(os, "memfd_create"):
            file: IO[bytes] = open(os.memfd_create("frames"), "wb")
        else:
            file = tempfile.TemporaryFile()
        with file:
            file.write(np.ascontiguousarray(frames).data.cast("B"))
            file.flush()
            socket.send_fds(self._frames, [b"f"], [file.fileno()])

    def _send(self, task: int, kind: str, content: Any) -> None:
        try:
            with self._send_lock:
                self._link.send((task, kind, content))
        except OSError:
            _end()

    def _send_error(self, task: int, error: Exception) -> None:
        if not isinstance(error, (Cancelled, ValueError)):
            log.error("task %d failed\n%s", task, "".join(traceback.format_exception(error)))
        lost = fatal(error)
        small = portable(error)
        if lost:
            # Freeing tensors may call CUDA, which fails again and would end this process without a word. So the error
            # is sent first, and the other side ends this process.
            self._send(task, "error", (small, True))
            threading.Event().wait()
        traceback.clear_frames(error.__traceback__)  # these frames still hold the tensors that filled the memory
        error.__traceback__ = error.__cause__ = error.__context__ = None
        release_memory()
        self._send(task, "error", (small, False))

    def _listen(self) -> None:
        """Receive requests, and end this process when the other side is gone."""
        try:
            while True:
                # the socket may stay open after the parent has died, in a process that the parent forked
                while not self._link.poll(PARENT_SECONDS):
                    if os.getppid() != self._parent:
                        _end()
                task, kind, arguments = self._link.recv()
                if kind == "cancel":
                    self._cancelled = task
                else:
                    self._tasks.put((task, kind, arguments))
        except (EOFError, OSError):
            _end()

    def _beat(self) -> None:
        pause = threading.Event()
        while not pause.wait(BEAT_SECONDS):
            self._send(BEAT, "beat", None)

    def _report_memory(self, device: Any) -> None:
        if device.type != "cuda":
            return
        pause, told = threading.Event(), None
        while not pause.wait(MEMORY_SECONDS):
            reading = torch_memory(device)
            if reading != told:
                self._send(MEMORY, "memory", reading)
                told = reading


def _end() -> None:
    """Kill this process and its children at once. It leads its own process group."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
