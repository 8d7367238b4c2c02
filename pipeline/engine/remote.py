"""An engine on another machine, as the worker sees it: the same members as `EngineProcess`.

A `Cluster` finds a machine with room and gives a `Link` to the `Node` there. The page's machine and that one share no
folder. So the file that a video begins with is sent there, and the results are sent back, both in pieces.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from pipeline.engine.engine import Elsewhere, Say
from pipeline.engine.node import LAST, Message
from pipeline.engine.parent import EngineDied
from pipeline.engine.process import NOT_RUNNING
from pipeline.engine.share import WHOLE
from pipeline.machine.device import DeviceName
from pipeline.machine.whole_files import replacing
from pipeline.request.load_options import LoadOptions
from pipeline.request.result import VideoResult
from pipeline.request.video import StepUpdate, VideoRequest

log = logging.getLogger("ui")

PLACING = "Waiting for a machine of the cluster with room for an engine"
LOST = "the machine that made it is gone, or its connection; the engine starts again where there is room, so try again"


class LinkLost(Exception):
    """The other side, or the way to it, is gone."""


class Link(Protocol):
    """The way to one `Node`."""

    def stream(self, method: str, *arguments: Any) -> Iterator[Message]:
        """The messages of a method of the node. Raises LinkLost when no more can come."""

    def generate(self, request: VideoRequest, sources: Sequence[Path], name: str, task: int) -> Iterator[Message]:
        """`Node.generate`, with the bytes of files of this machine as its sources."""

    def cancel(self, task: int) -> None:
        """`Node.cancel`. Returns at once."""

    def end(self) -> None:
        """End the node and all that it started. Returns at once."""


class Cluster(Protocol):
    """Machines on which engines run."""

    def place(self, target: str, arguments: dict[str, Any]) -> Link:
        """Have a `Node` begin on a machine with room. Returns at once; its streams wait until there is one."""


class RemoteEngine:
    """Makes videos on a machine of the cluster. It runs one task at a time; calls from several threads wait their turn.

    target, arguments: of the `EngineProcess` there.
    """

    tries = 3
    share = WHOLE

    def __init__(self, cluster: Cluster, target: str, **arguments: Any) -> None:
        self.on_exit: Callable[[], None] = lambda: None
        self.device = DeviceName("cpu")
        self.alive = False
        self.why = NOT_RUNNING
        self._cluster = cluster
        self._target = target
        self._arguments = arguments
        self._link: Link | None = None
        self._here = Elsewhere()
        self._memory: dict[str, int] | None = None
        self._weights = LoadOptions.among(arguments)
        self._task = 0  # the number of the last video
        self._turn = threading.Lock()
        self._closed = False

    @property
    def pid(self) -> None:
        """None: it has no process on this machine."""

    @property
    def path(self) -> Path:
        """The checkpoint folder that `start` loads, on the engine's machine."""
        return Path(self._arguments["path"])

    @property
    def weights(self) -> LoadOptions:
        """The options that the model's weights are loaded with; its precision is known once it is loaded."""
        return self._weights

    def torch_memory(self) -> dict[str, int] | None:
        """Bytes "allocated" and "reserved" by the engine's CUDA allocator, half a second old."""
        return self._memory if self.alive else None

    def reading(self) -> Elsewhere:
        """The newest reading of its machine; the last one after its end."""
        return self._here

    def check_switch(self, path: str | Path) -> None:
        """Any checkpoint will do that the engine's machine has at the same place."""

    def switch(self, path: Path) -> None:
        """Make every later `start` load the checkpoint `path`."""
        self._arguments = {**self._arguments, "path": str(path)}

    def start(self, say: Say) -> RemoteEngine:
        """Find a machine, in place of an earlier one, and wait until the pipeline is loaded there.

        say: called with sentences on the progress.

        Raises:
            EngineDied: the machine went away, or the pipeline's process ended while loading.
            ValueError, RuntimeError, ...: raised by the loading.
        """
        with self._turn:
            self.alive = False
            if self._link is not None:
                self._link.end()
            say(PLACING)
            link = self._link = self._cluster.place(self._target, self._arguments)
            if self._closed:  # by another thread, meanwhile
                link.end()
            device, self._weights = self._follow(link.stream("start"), lambda kind, text: say(text))
            self.device = DeviceName.parse(device)
            self.alive, self.why = True, ""
            threading.Thread(target=self._watch, args=(link,), name="engine-watch", daemon=True).start()
        return self

    def generate_frames(
        self, request: VideoRequest, on_step: Callable[[StepUpdate], None] | None, output: Path
    ) -> tuple[VideoResult, np.ndarray]:
        """Generate like `LongCatPipeline.generate_frames`; files are written beside `output` when all have come.

        Raises:
            EngineDied: the machine or the pipeline's process is gone; `start` finds another.
            Cancelled, ValueError, OSError, MemoryError, RemoteError: raised by the pipeline.
        """
        output = Path(output).absolute()

        def on_message(kind: str, content: Any) -> None:
            if kind != "step":
                received.take(kind, content)
            elif on_step is not None:
                phase, step, total, seconds, preview = content
                on_step(StepUpdate(phase, step, total, seconds, None if preview is None else lambda: preview))

        with self._turn, ExitStack() as files:
            received = _Received(output.parent, files)
            link = self._running()
            self._task += 1
            messages = link.generate(request, request.start.sources, output.name, self._task)
            result = self._follow(messages, on_message)
            return replace(result, request=request, video=output), received.frames

    def call(self, target: str) -> Any:
        """Call the function "module:name" with the pipeline on its machine, and return its result."""
        with self._turn:
            return self._follow(self._running().stream("call", target), lambda kind, content: None)

    def calibrate(self) -> list[dict[str, Any]]:
        return self.call("pipeline.estimate.calibrate:measure")

    def cancel(self) -> None:
        """End the task that runs now, if any, at its next step. Returns at once."""
        if self._link is not None:
            self._link.cancel(self._task)

    def close(self) -> None:
        """End the engine, even during a task. No other is started."""
        self._closed, self.alive = True, False
        if self._link is not None:
            self._link.end()

    def _running(self) -> Link:
        if self._link is None or not self.alive:
            raise EngineDied(self.why or NOT_RUNNING)
        return self._link

    def _follow(self, messages: Iterator[Message], on_message: Callable[[str, Any], None]) -> Any:
        """Pass on messages until the task ends. Returns its result or raises its error.

        An error in `on_message` cancels the task, and is raised once it has ended.
        """
        refusal: BaseException | None = None
        try:
            for kind, content in messages:
                if kind == "gone":
                    self._lose(content)
                    raise refusal or EngineDied(content)
                if kind in LAST:
                    if refusal or kind == "error":
                        raise refusal or content
                    return content
                if refusal is None:
                    try:
                        on_message(kind, content)
                    except BaseException as error:
                        refusal = error
                        self.cancel()
        except LinkLost as error:
            log.warning("an engine of the cluster is lost: %s", error)
        self._lose(LOST)
        raise refusal or EngineDied(LOST)

    def _watch(self, link: Link) -> None:
        why = LOST
        with suppress(LinkLost):
            for kind, content in link.stream("watch"):
                if kind == "here" and link is self._link:
                    self._here, self._memory = content
                elif kind in LAST:
                    why = content
        if link is self._link:
            self._lose(why)

    def _lose(self, why: str) -> None:
        if self.alive:
            self.alive, self.why = False, why
            self.on_exit()


class _Received:
    """The results of a video as they arrive: frames, and files, which appear in the folder when `files` closes."""

    def __init__(self, folder: Path, files: ExitStack) -> None:
        self.frames = np.empty(0, np.uint8)
        self._folder, self._files = folder, files
        self._file: IO[bytes] | None = None
        self._flat, self._filled = self.frames, 0

    def take(self, kind: str, content: Any) -> None:
        if kind == "file":
            partial = self._files.enter_context(replacing(self._folder / Path(content).name))
            self._file = self._files.enter_context(partial.open("wb"))
        elif kind == "frames":
            self.frames, self._file = np.empty(content, np.uint8), None
            self._flat = self.frames.reshape(-1)
        elif self._file is not None:
            self._file.write(content)
        else:
            self._flat[self._filled : self._filled + len(content)] = content
            self._filled += len(content)
