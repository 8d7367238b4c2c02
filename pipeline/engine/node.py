"""An engine at the other end of a network: the part that runs on the machine with the GPUs.

`Node` holds an `EngineProcess`, the same program as on one host, and a folder of its own. All that it has to say comes
as messages (kind, content), so it needs no folder that the page's machine sees too: files and frames travel in pieces.
`pipeline.engine.remote` is the other side. Neither knows how the messages travel.
"""

from __future__ import annotations

import os
import queue
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.engine.child import portable
from pipeline.engine.engine import Elsewhere
from pipeline.engine.parent import EngineDied
from pipeline.engine.process import EngineProcess
from pipeline.machine.memory import available_memory, held_memory, total_memory
from pipeline.machine.resources import ResourceSampler
from pipeline.request.start import FromClip, FromNoise
from pipeline.request.video import StepUpdate, VideoRequest

PIECE = 4 * 2**20  # bytes of a file or of frames in one message
LOOK_SECONDS = 0.5

Message = tuple[str, Any]
LAST = ("done", "error", "gone")  # kinds that end a stream: the result, what was raised, why the engine is no more


class Node:
    """target, arguments: of the `EngineProcess`. Its methods may be called from several threads; one task at a time.

    The streams are iterators of messages. They end with one of the kinds `LAST`.
    """

    def __init__(self, target: str, arguments: dict[str, Any]) -> None:
        self._engine = EngineProcess(target, **arguments)
        self._engine.on_exit = self._look
        self._ended = threading.Event()
        self._task = 0
        self._lock = threading.Lock()  # the task
        self._folder = Path(tempfile.mkdtemp(prefix="engine-"))

    def start(self) -> Iterator[Message]:
        """Load the pipeline: ("say", sentence) any number of times, then ("done", (name of the device, the
        options that the weights are loaded with))."""

        def work(say: Callable[[Message], None]) -> Any:
            self._engine.start(lambda text: say(("say", text)))
            return str(self._engine.device), self._engine.weights

        yield from _stream(work)

    def generate(
        self, request: VideoRequest, sources: Iterable[Iterable[bytes]], name: str, task: int
    ) -> Iterator[Message]:
        """Make a video: ("step", (phase, step, total, seconds, preview)) for each step; then for each file that was
        written ("file", its name) and its ("piece", uint8 array); ("frames", their shape) with their pieces; and
        ("done", the result), whose paths are of this machine.

        sources: the bytes of each file that the request begins with (`start.sources`), in pieces. name: of the video.
        task: its number, from 1 on, for `cancel`.
        """

        def work(say: Callable[[Message], None]) -> Any:
            def on_step(update: StepUpdate) -> None:
                preview = None if update.preview is None else update.preview()
                say(("step", (update.phase, update.step, update.total, update.seconds, preview)))

            with self._lock:
                self._task = task
            folder = Path(tempfile.mkdtemp(dir=self._folder))
            try:
                here = _with_sources(request, sources, folder)
                output = folder / "made" / name
                output.parent.mkdir()
                result, frames = self._engine.generate_frames(here, on_step, output)
                for file in sorted(output.parent.iterdir()):
                    say(("file", file.name))
                    _say_pieces(np.fromfile(file, np.uint8), say)
                say(("frames", frames.shape))
                _say_pieces(np.ascontiguousarray(frames).reshape(-1), say)
                return result
            finally:
                shutil.rmtree(folder, ignore_errors=True)

        yield from _stream(work)

    def call(self, target: str) -> Iterator[Message]:
        """Call the function "module:name" with the pipeline: ("done", what it returns)."""
        yield from _stream(lambda say: self._engine.call(target))

    def cancel(self, task: int) -> None:
        """End this task, if it runs now, as `EngineProcess.cancel` does. On a network it may come too late, when the
        next task has begun."""
        with self._lock:
            if task == self._task:
                self._engine.cancel()

    def watch(self) -> Iterator[Message]:
        """What this machine has and does: ("here", (`Elsewhere`, result of `torch_memory`)) twice a second, until the
        pipeline's process has ended: ("gone", why). To be called once it has started."""
        engine, visible = self._engine, os.environ.get("CUDA_VISIBLE_DEVICES", "")
        sampler = ResourceSampler(
            pid=lambda: engine.pid or os.getpid(),
            torch_memory=engine.torch_memory,
            only=[name for name in visible.split(",") if name],
        ).start()
        try:
            while engine.alive:
                memory = engine.torch_memory()
                held = memory["reserved"] if memory else held_memory(engine.device, engine.pid)
                available, total = available_memory(engine.device) + held, total_memory(engine.device)
                yield "here", (Elsewhere(sampler.latest, available, total), memory)
                self._ended.wait(LOOK_SECONDS)
            yield "gone", engine.why
        finally:
            sampler.stop()

    def close(self) -> None:
        """End the pipeline's process, and leave nothing behind."""
        self._engine.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _look(self) -> None:
        if not self._engine.alive:
            self._ended.set()


def _with_sources(request: VideoRequest, sources: Iterable[Iterable[bytes]], folder: Path) -> VideoRequest:
    """The request with the files that it begins with put into the folder."""
    start, files = request.start, []
    if isinstance(start, FromNoise):
        return request
    for number, (source, pieces) in enumerate(zip(start.sources, sources, strict=True)):
        files.append(folder / str(number) / source.name)  # two may have one name
        files[-1].parent.mkdir()
        with files[-1].open("wb") as written:
            for piece in pieces:
                written.write(piece)
    here = start.at(files[0])
    if isinstance(here, FromClip) and here.refined is not None:
        here = replace(here, refined=str(files[1]))
    return replace(request, start=here)


def _say_pieces(values: np.ndarray, say: Callable[[Message], None]) -> None:
    for begin in range(0, len(values), PIECE):
        say(("piece", values[begin : begin + PIECE]))


def _stream(work: Callable[[Callable[[Message], None]], Any]) -> Iterator[Message]:
    """Run `work` in a thread of its own. Yields its messages, and then its result or error."""
    messages: queue.Queue[Message] = queue.Queue(maxsize=32)  # whoever is slow to read holds the work up

    def run() -> None:
        try:
            messages.put(("done", work(messages.put)))
        except EngineDied as error:
            messages.put(("gone", str(error)))
        except Exception as error:
            messages.put(("error", portable(error)))

    threading.Thread(target=run, name="node-task", daemon=True).start()
    while True:
        message = messages.get()
        yield message
        if message[0] in LAST:
            return
