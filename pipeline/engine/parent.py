"""One child process of the engine, from its start to its end: messages, frames, and why it died.

Threads of its own read, write and watch, so whoever asks, cancels or kills never waits for a child that hangs.
"""

from __future__ import annotations

import itertools
import logging
import mmap
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from pipeline.engine.child import BEAT, LOADING, MEMORY
from pipeline.engine.patience import BEAT_SECONDS, Patience

log = logging.getLogger("ui")

END_SECONDS = 5.0  # that a killed process gets to disappear

# The program of the child. It gets the search path of this process, so that both import the same modules.
_PROGRAM = (
    "import sys; sys.path[:] = sys.argv[3:]; from pipeline.engine.child import main; main(*map(int, sys.argv[1:3]))"
)

KILLED = (
    "the engine was killed while it worked, which is what the system does when memory runs out; it starts again by "
    "itself, so try a smaller size or fewer frames"
)
CRASHED = (
    "the engine crashed ({signal}) and starts again by itself; try again, and if it happens twice, try other settings: "
    "the server's log has the details"
)
EXITED = (
    "the engine ended unexpectedly (exit code {code}) and starts again by itself; try again: the server's log has the "
    "details"
)
CUDA_LOST = (
    "the GPU reported an error that nothing but a new engine recovers from ({error}); the engine starts again by "
    "itself, so try again"
)


class EngineDied(RuntimeError):
    """The child process ended, or had to be killed. The text is a sentence for people."""


class Child:
    """One child process, from start to end. Only messages of the current task are kept.

    environment: variables that it gets besides those of this process.
    """

    def __init__(
        self,
        target: str,
        arguments: dict[str, Any],
        on_exit: Callable[[], None],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.alive = True
        self.why = EXITED.format(code=0)
        self.memory: dict[str, int] | None = None
        self._task: int | None = LOADING
        self._cancelled: int | None = None
        self._heard = False
        self._numbers = itertools.count(LOADING + 1)
        self._inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[tuple | None] = queue.SimpleQueue()  # None ends it
        self._lock = threading.Lock()  # the current task
        self._killed = False
        self._buried = threading.Event()
        self._on_exit = on_exit

        messages, its_messages = socket.socketpair()
        self._frames, its_frames = socket.socketpair()
        with its_messages, its_frames:
            handles = its_messages.fileno(), its_frames.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, *map(str, handles), *sys.path],
                pass_fds=handles,
                env=os.environ | dict(environment or {}),
                stdin=subprocess.DEVNULL,
                # a group of its own: Ctrl-C in the terminal does not reach it, and a kill takes its children too
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._link = Connection(messages.detach())
        self._outbox.put((target, arguments, logging.getLogger().getEffectiveLevel()))
        self._reader, self._writer, watch = (
            threading.Thread(target=work, name=f"engine-{work.__name__.strip('_')}", daemon=True)
            for work in (self._read, self._write, self._watch)
        )
        for thread in (self._reader, self._writer, watch):
            thread.start()

    def ask(self, kind: str, arguments: tuple) -> int:
        with self._lock:
            self._task = next(self._numbers)
            self._inbox = queue.SimpleQueue()
            if not self.alive:
                self._inbox.put(("gone", None))
            self._outbox.put((self._task, kind, arguments))
            return self._task

    def forget(self, task: int) -> None:
        with self._lock:
            if self._task == task:
                self._task = None

    def next_message(self) -> tuple[str, Any]:
        return self._inbox.get()

    def cancel(self) -> None:
        """End the current task at its next step, or the child where that does not come."""
        with self._lock:
            if self._task and self._task != self._cancelled:
                self._cancelled = self._task
                self._outbox.put((self._task, "cancel", ()))

    def kill(self) -> None:
        """Kill the process and its children. `join` waits until they are gone."""
        self._killed = True
        if self._process.poll() is None:
            self._kill_group()

    def join(self) -> None:
        if threading.current_thread() is not self._reader:
            self._reader.join(END_SECONDS)

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):  # nobody is left in it
            os.killpg(self.pid, signal.SIGKILL)

    def _write(self) -> None:
        while (message := self._outbox.get()) is not None:
            try:
                self._link.send(message)
            except OSError:
                return  # the reader notices the end too, and tells whoever waits

    def _watch(self) -> None:
        patience = Patience()
        while not self._buried.wait(BEAT_SECONDS):
            heard, self._heard = self._heard, False
            with self._lock:
                loading, stopping = self._task == LOADING, self._task is not None and self._task == self._cancelled
            if why := patience.beat(heard=heard, loading=loading, stopping=stopping):
                log.error("the engine process %d hangs: %s", self.pid, why)
                self.why = why
                self.kill()
                return

    def _read(self) -> None:
        while True:
            try:
                task, kind, content = self._link.recv()
                if kind == "video":
                    result, shape = content
                    kind, content = "done", (result, self._take_frames(shape))
            except Exception as error:
                if not isinstance(error, (EOFError, OSError)):
                    log.exception("the engine sent what cannot be read")
                break
            self._heard = True
            if task == MEMORY:
                self.memory = content
            if task in (MEMORY, BEAT):
                continue
            with self._lock:
                if task == self._task:
                    self._inbox.put((kind, content))
        self._bury()

    def _take_frames(self, shape: tuple[int, ...]) -> np.ndarray:
        _, (handle,), *_ = socket.recv_fds(self._frames, 1, 1)
        try:
            return np.frombuffer(mmap.mmap(handle, 0, access=mmap.ACCESS_READ), np.uint8).reshape(shape)
        finally:
            os.close(handle)

    def _bury(self) -> None:
        """The child closed its sockets: make sure that it is gone, and record the reason."""
        try:
            code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            code = self._process.wait()
        self._kill_group()  # what it started, such as an ffmpeg that would go on writing
        if not self._killed:
            self.why = _reason(code)
            log.error("the engine process %d ended: %s", self.pid, self.why)
        self._buried.set()
        self._outbox.put(None)
        self._writer.join()  # no further than the end of the child
        with self._lock:
            self.alive = False
            self._inbox.put(("gone", None))
            self._link.close()
            self._frames.close()
        self._on_exit()


def _reason(code: int) -> str:
    if code == -signal.SIGKILL:
        return KILLED
    if code < 0:
        return CRASHED.format(signal=signal.Signals(-code).name)
    return EXITED.format(code=code)
