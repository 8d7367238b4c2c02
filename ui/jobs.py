"""One worker thread that owns the pipeline and runs jobs one after another.

Handlers never run the model themselves. They submit a `Job`, watch its `version` counter and read its
attributes, so that several views may follow one job and progress is always reported from the handler that
Gradio knows about (a progress call from a foreign thread reaches nobody).
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from pipeline import Cancelled, Comparison, StepUpdate, VideoRequest, VideoResult, compare

log = logging.getLogger("ui")

ARMS = ("dense", "sparse")


class Generator(Protocol):
    """What the worker, and `pipeline.compare`, need of a pipeline; `pipeline.LongCatPipeline` is one."""

    device: torch.device

    def generate_frames(
        self, request: VideoRequest, on_step: Callable[[StepUpdate], None] | None, output: Path
    ) -> tuple[VideoResult, np.ndarray]: ...


@dataclass(eq=False)
class Job:
    """One press of Generate. The worker writes it, everybody else only reads.

    state: waiting, running, done, stopped or failed. `version` grows with every change.
    arm is the video being made now; `results` holds the finished ones, by arm. preview is the newest latent
    preview, uint8 [H, W, 3] or [T, H, W, 3], or None; it is computed in the worker's thread because the
    latents belong to the running loop.
    """

    request: VideoRequest
    side_by_side: bool
    folder: Path
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    state: str = "waiting"
    arm: str = ""
    update: StepUpdate | None = None
    preview: Any = None
    results: dict[str, VideoResult] = field(default_factory=dict)
    comparison: Comparison | None = None
    error: str = ""
    version: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def arms(self) -> tuple[str, ...]:
        """The videos this job makes, in the order in which they are made."""
        return ARMS if self.side_by_side else (arm_of(self.request),)

    @property
    def over(self) -> bool:
        return self.state in ("done", "stopped", "failed")

    @property
    def stopping(self) -> bool:
        return self._stop.is_set() and not self.over

    def stop(self) -> None:
        """Ask the job to end; a running one ends at its next step."""
        self._stop.set()
        self.version += 1

    def report(self) -> dict[str, Any]:
        """What was asked for, made and measured, ready for JSON. Videos are named, not located: the reader may
        be on another machine, and an infinite PSNR (two equal videos) becomes null, which JSON can say."""
        if self.comparison is None:
            return _plain(self.results[self.arms[0]].to_dict())
        return _plain(self.comparison.to_dict())


def _plain(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _plain(entry, name) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return Path(value).name if key == "video" else value


def arm_of(request: VideoRequest) -> str:
    return "dense" if request.bsa is None else "sparse"


class Worker:
    """Loads the pipeline in the background and then runs submitted jobs in order, one at a time.

    load: returns a `Generator`; called once, in the worker's thread. A ValueError or OSError from it
        becomes the status sentence, and every job fails with that sentence.
    output_dir: each job writes into its own new folder below it.
    """

    def __init__(self, load: Callable[[Callable[[str], None]], Generator], output_dir: Path, name: str) -> None:
        self.output_dir = output_dir
        self.name = name
        self.state = "loading"
        self.message = f"Loading {name}"
        self._load = load
        self._queue: deque[Job] = deque()
        self._running: Job | None = None
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._serve, name="video-worker", daemon=True)

    def start(self) -> Worker:
        self._thread.start()
        return self

    def submit(self, request: VideoRequest, *, side_by_side: bool) -> Job:
        active, reason = request.bsa_status()
        if side_by_side and not active:
            raise ValueError(f"nothing to compare: {reason}")
        if self.state == "failed":
            raise ValueError(self.message)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        job = Job(request, side_by_side, folder=self.output_dir / f"{stamp}-{uuid.uuid4().hex[:6]}")
        with self._wake:
            self._queue.append(job)
            self._wake.notify()
        return job

    def stop(self, job: Job) -> None:
        """End a job: at once while it waits, at its next step when it runs."""
        job.stop()
        with self._wake:
            waiting = job in self._queue
            if waiting:
                self._queue.remove(job)
        if waiting:
            self._end(job, "stopped")

    def ahead(self, job: Job) -> int:
        """Jobs that run before this one does, the running one included."""
        with self._wake:
            waiting = list(self._queue)
            running = self._running is not None
        return waiting.index(job) + running if job in waiting else 0

    def waiting_text(self, job: Job) -> str:
        """Why a submitted job does not run yet."""
        if self.state == "loading":
            return f"{self.message}. Your video starts as soon as it is loaded."
        ahead = self.ahead(job)
        return f"Waiting for {ahead} other job{'s' if ahead > 1 else ''}…" if ahead else "Starting…"

    def status(self) -> dict[str, Any]:
        """The worker in one line: {"state": loading|ready|busy|failed, "message": sentence}."""
        with self._wake:
            running, waiting = self._running, len(self._queue)
        if self.state != "ready" or running is None:
            return {"state": self.state, "message": self.message}
        more = f", {waiting} waiting" if waiting else ""
        return {"state": "busy", "message": f"{self.name} is making a video{more}"}

    def _serve(self) -> None:
        try:
            pipeline = self._load(self._say)
        except Exception as error:
            log.exception("the checkpoint could not be loaded")
            self.message = f"{self.name} could not be loaded: {sentence(error)}"
            self.state = "failed"
            with self._wake:
                waiting = list(self._queue)
                self._queue.clear()
            for job in waiting:
                self._end(job, "failed", self.message)
            return
        self.message = f"{self.name} is ready"
        self.state = "ready"
        while True:
            with self._wake:
                while not self._queue:
                    self._wake.wait()
                job = self._running = self._queue.popleft()
            self._run(pipeline, job)
            with self._wake:
                self._running = None

    def _say(self, message: str) -> None:
        self.message = message

    def _run(self, pipeline: Generator, job: Job) -> None:
        def on_step(update: StepUpdate) -> None:
            job.update = update
            if update.preview is not None:
                job.preview = update.preview()
            job.version += 1
            if job._stop.is_set():
                raise Cancelled

        try:
            if job._stop.is_set():
                raise Cancelled
            job.folder.mkdir(parents=True)
            job.state = "running"
            watched = _Watched(pipeline, job)
            if job.side_by_side:
                job.comparison = compare(watched, job.request, on_step, job.folder)
            else:
                watched.generate_frames(job.request, on_step, job.folder / f"{job.arms[0]}.mp4")
            (job.folder / "report.json").write_text(json.dumps(job.report(), indent=2))
        except Cancelled:
            self._end(job, "stopped")
        except Exception as error:
            if not isinstance(error, ValueError):
                log.exception("job %s failed", job.id)
            self._end(job, "failed", sentence(error))
        else:
            self._end(job, "done")

    @staticmethod
    def _end(job: Job, state: str, error: str = "") -> None:
        job.error = error
        job.state = state
        job.version += 1


class _Watched:
    """A pipeline that notes in the job which video is being made and which is finished."""

    def __init__(self, pipeline: Generator, job: Job) -> None:
        self.device = pipeline.device
        self._pipeline = pipeline
        self._job = job

    def generate_frames(
        self, request: VideoRequest, on_step: Callable[[StepUpdate], None] | None, output: Path
    ) -> tuple[VideoResult, np.ndarray]:
        job = self._job
        job.arm, job.update, job.preview = arm_of(request), None, None
        job.version += 1
        result, frames = self._pipeline.generate_frames(request, on_step, output)
        job.results = {**job.results, job.arm: result}
        job.version += 1
        return result, frames


def sentence(error: Exception) -> str:
    """One line for people: our own errors as they are, anything else with its type and a remedy."""
    text = " ".join(str(error).split())
    if isinstance(error, ValueError):
        return text
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return "the device ran out of memory; use a smaller size, fewer frames or a higher sparsity"
    if isinstance(error, OSError):
        return f"the video could not be written ({text}); check space and permission of the output folder"
    return f"{type(error).__name__}: {text or 'no message'}; the server's log has the details"
