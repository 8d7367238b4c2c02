"""Runs the pipeline in a separate process, so that the page answers during computation and survives a crash.

The worker and its jobs see an `EngineProcess`: a `Generator` whose videos are made by the child process that runs
`pipeline.engine.child`. A dead child is noticed at once, and one that hangs after a while; the worker starts another.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.engine.child import LOADING
from pipeline.engine.engine import Say
from pipeline.engine.parent import CUDA_LOST, Child, EngineDied
from pipeline.engine.share import WHOLE, Share
from pipeline.machine.device import DeviceName
from pipeline.machine.whole_files import remove_partials
from pipeline.request.load_options import LoadOptions
from pipeline.request.result import Generator, VideoResult
from pipeline.request.sentences import one_line
from pipeline.request.video import StepUpdate, VideoRequest

Load = Callable[[Say], Generator]

NOT_RUNNING = "the engine is not running; try again in a moment"
FIXED = "this server has one checkpoint only; start another one with --model-path {path}"


class EngineProcess:
    """Makes videos in a child process. It runs one task at a time; calls from several threads wait their turn.

    target: "module:function", called in the child as function(say, **arguments); it returns the pipeline.
    share: what the child gets of this machine.
    """

    tries = 3

    def __init__(self, target: str, *, share: Share = WHOLE, **arguments: Any) -> None:
        self.on_exit: Callable[[], None] = lambda: None
        self.device = DeviceName("cpu")
        self.share = share
        self._target = target
        self._arguments = arguments
        self._child: Child | None = None
        self._turn = threading.Lock()
        self._closed = False
        self._precision: str | None = None  # of the loaded model

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.alive

    @property
    def pid(self) -> int | None:
        """The child's process id, or None while there is no child."""
        child = self._child
        return child.pid if child is not None and child.alive else None

    def torch_memory(self) -> dict[str, int] | None:
        """Bytes "allocated" and "reserved" by the child's CUDA allocator, at most a tenth of a second old."""
        child = self._child
        return child.memory if child is not None and child.alive else None

    def reading(self) -> None:
        """None: it runs on this machine."""

    def start(self, say: Say) -> EngineProcess:
        """Start a child, in place of an earlier one, and wait until it has loaded the pipeline.

        say: called with sentences on the progress of loading.

        Raises:
            EngineDied: the child ended while loading.
            ValueError, RuntimeError, ...: raised by the loading.
        """
        with self._turn:
            self._end_child()
            environment = self.share.environment
            child = self._child = Child(self._target, self._arguments, lambda: self.on_exit(), environment)
            if self._closed:  # by another thread, meanwhile
                child.kill()
            try:
                device, self._precision = _follow(child, LOADING, lambda kind, text: say(text))
                self.device = self.share.as_here(DeviceName.parse(device))
            except BaseException:
                child.kill()
                raise
            child.forget(LOADING)
        return self

    @property
    def why(self) -> str:
        """The reason why the child is no longer alive, as a sentence."""
        return NOT_RUNNING if self._child is None else self._child.why

    def check_switch(self, path: str | Path) -> None:
        """Raise ValueError if this engine cannot switch to the checkpoint `path`."""

    def switch(self, path: Path) -> None:
        """Make every later `start` load the checkpoint `path`."""
        self._arguments, self._precision = {**self._arguments, "path": str(path)}, None

    @property
    def path(self) -> Path:
        """The checkpoint folder that `start` loads."""
        return Path(self._arguments["path"])

    @property
    def weights(self) -> LoadOptions:
        """The options that the model's weights are loaded with; its precision is known once it is loaded."""
        given = LoadOptions.among(self._arguments)
        return replace(given, precision=self._precision or given.precision)

    def generate_frames(
        self, request: VideoRequest, on_step: Callable[[StepUpdate], None] | None, output: Path
    ) -> tuple[VideoResult, np.ndarray]:
        """Generate like `LongCatPipeline.generate_frames`. Frames are read-only; the task ends if `on_step` raises.

        Raises:
            EngineDied: the child ended; `start` starts another.
            Cancelled, ValueError, OSError, MemoryError: raised by the pipeline.
            RemoteError: the pipeline raised another error.
        """

        def on_message(kind: str, content: tuple) -> None:
            phase, step, total, seconds, preview = content
            if on_step is not None:
                on_step(StepUpdate(phase, step, total, seconds, None if preview is None else lambda: preview))

        output = Path(output).absolute()
        child = self._child
        try:
            return self._ask("generate", (request, output), on_message)
        except EngineDied:
            if child is not None:
                remove_partials(output.parent, child.pid)
            raise

    def call(self, target: str) -> Any:
        """Call the function "module:name" with the pipeline in the child, and return its result."""
        return self._ask("call", (target,), lambda kind, content: None)

    def calibrate(self) -> list[dict[str, Any]]:
        return self.call("pipeline.estimate.calibrate:measure")

    def cancel(self) -> None:
        """End the task that runs now, if any, at its next step; it raises `Cancelled`. Where that step does not come,
        the child is ended, and it raises `EngineDied`. Returns at once."""
        child = self._child
        if child is not None:
            child.cancel()

    def close(self) -> None:
        """Kill the child, even during a task. No other child is started."""
        self._closed = True
        self._end_child()

    def _end_child(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.join()

    def _ask(self, kind: str, arguments: tuple, on_message: Callable[[str, Any], None]) -> Any:
        with self._turn:
            child = self._child
            if child is None:
                raise EngineDied(NOT_RUNNING)
            task = child.ask(kind, arguments)
            try:
                return _follow(child, task, on_message)
            finally:
                child.forget(task)


def _follow(child: Child, task: int, on_message: Callable[[str, Any], None]) -> Any:
    """Pass on the messages of a task until it ends. Returns its result or raises its error.

    An error in `on_message` cancels the task, and is raised once the child is ready for the next one.
    """
    refusal: BaseException | None = None
    while True:
        kind, content = child.next_message()
        if kind == "gone":
            raise refusal or EngineDied(child.why)
        if kind == "done":
            if refusal is not None:
                raise refusal
            return content
        if kind == "error":
            error, lost = content
            if lost:
                first = next(iter(str(error).splitlines()), "")  # PyTorch adds hints for developers below
                child.why = CUDA_LOST.format(error=one_line(first))
                child.kill()
                continue
            raise refusal or error
        if refusal is None:
            try:
                on_message(kind, content)
            except BaseException as error:
                refusal = error
                child.cancel()


class InProcess:
    """Runs a pipeline in this process, with the same members as `EngineProcess`."""

    tries = 1
    alive = True
    pid = os.getpid()
    path = Path()
    why = NOT_RUNNING
    weights = LoadOptions()
    share = WHOLE

    def __init__(self, load: Load) -> None:
        self.on_exit: Callable[[], None] = lambda: None
        self._load = load

    def start(self, say: Say) -> Generator:
        return self._load(say)

    def torch_memory(self) -> dict[str, int] | None:
        return None

    def reading(self) -> None:
        """None: it runs on this machine."""

    def calibrate(self) -> list[dict[str, Any]]:
        return []

    def check_switch(self, path: str | Path) -> None:
        raise ValueError(FIXED.format(path=path))

    def switch(self, path: Path) -> None:
        self.check_switch(path)

    def cancel(self) -> None:
        """Do nothing: the job is asked at every step anyway."""

    def close(self) -> None:
        """Do nothing: the pipeline ends with this process."""
