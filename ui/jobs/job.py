"""What the worker is asked to do. A job is written by the worker's thread; everybody else only reads it.

Views watch a job's `version` counter and read its attributes, so that several of them may follow one job, and a page
that was reloaded can take up a job again.
"""

from __future__ import annotations

import logging
import math
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from pipeline import Cancelled, Comparison, StepUpdate, VideoRequest, VideoResult, compare
from pipeline.request.generator import Generator, OnStep
from pipeline.request.start import FromClip

log = logging.getLogger("ui")

ARMS = ("dense", "sparse")

Listener = Callable[["Job"], None]


class Mark(NamedTuple):
    """When a phase of one video began; `time` is `time.time()`."""

    time: float
    arm: str
    phase: str


@dataclass(eq=False)
class Job:
    """One thing to do with the pipeline.

    owner: whose job it is; only the owner sees it.
    folder: its files, set when it is submitted.
    state: waiting, running, done, stopped or failed. `version` grows with every change.
    arm is the video being made now, "dense" or "sparse". preview is the newest latent preview, uint8 [H, W, 3] or
    [T, H, W, 3], or None; it is computed in the worker's thread because the latents belong to the running loop.
    marks: when which phase began. submitted, started, ended: `time.time()`, 0 for not yet.
    work: how much there is to do, in a unit that only compares jobs of one class; 0 for unknown.
    errand: whether it is the worker's own business: it has no folder, no report and no place in any history.
    barrier: whether those that wait before it must be done before it, and those after it must not come before it.
    away: seconds that it waited between its turns.
    """

    errand: ClassVar[bool] = False
    barrier: ClassVar[bool] = False
    owner: str = field(default="", kw_only=True)
    folder: Path = field(default=Path(), init=False)
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12], init=False)
    state: str = field(default="waiting", init=False)
    arm: str = field(default="", init=False)
    update: StepUpdate | None = field(default=None, init=False)
    preview: Any = field(default=None, init=False)
    marks: list[Mark] = field(default_factory=list, init=False)
    submitted: float = field(default=0.0, init=False)
    started: float = field(default=0.0, init=False)
    ended: float = field(default=0.0, init=False)
    away: float = field(default=0.0, init=False)
    error: str = field(default="", init=False)
    version: int = field(default=0, init=False)
    _stop: threading.Event = field(default_factory=threading.Event, init=False)
    _ending: bool = field(default=False, init=False)

    def run(self, pipeline: Generator, on_step: OnStep) -> None:
        """Do it, or its next part, in the worker's thread. `on_step` raises `Cancelled` once the job is to stop."""
        raise NotImplementedError

    @property
    def unfinished(self) -> bool:
        """Whether it has a further part: then it may give way to others, and is run again."""
        return False

    @property
    def parts(self) -> float:
        """How many parts are left to do; of the one under way what is left of it."""
        return 1.0

    def report(self) -> dict[str, Any]:
        """What was asked for, made and measured, ready for JSON; written to report.json when the job is done."""
        raise NotImplementedError

    @property
    def work(self) -> float:
        return 0.0

    def remaining(self) -> float | None:
        """Seconds that the running job still takes, from the steps seen so far; None while they say too little."""
        return None

    @property
    def over(self) -> bool:
        """Whether it has ended, and everybody who listens for that has been told."""
        return self.state in ("done", "stopped", "failed") and not self._ending

    @property
    def stopping(self) -> bool:
        return self._stop.is_set() and not self.over

    def stop(self) -> None:
        """Ask the job to end; a running one ends at its next step."""
        self._stop.set()
        self.version += 1

    def check_stop(self) -> None:
        if self._stop.is_set():
            raise Cancelled

    def end(self, state: str, error: str, listeners: Sequence[Listener]) -> None:
        """Set how it ended and tell the listeners; only then is it `over`."""
        self._ending = True
        self.error, self.ended, self.state, self.preview = error, time.time(), state, None
        tell(listeners, self)
        self._ending = False
        self.version += 1

    def begin_video(self, arm: str) -> None:
        self.arm, self.update, self.preview = arm, None, None
        self.version += 1

    def note(self, update: StepUpdate) -> None:
        """Take in the progress of the video being made."""
        if self.update is None or self.update.phase != update.phase:
            self.marks.append(Mark(time.time(), self.arm, update.phase))
        self.update = update
        if update.preview is not None:
            self.preview = update.preview()
        self.version += 1


@dataclass(eq=False)
class VideoJob(Job):
    """One press of Generate: one video, or the same clip dense and sparse.

    `results` holds the finished videos, by arm.
    """

    request: VideoRequest
    side_by_side: bool
    results: dict[str, VideoResult] = field(default_factory=dict, init=False)
    comparison: Comparison | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.side_by_side:
            self.request.workload.check_comparison()

    @property
    def arms(self) -> tuple[str, ...]:
        """The videos this job makes, in the order in which they are made."""
        return ARMS if self.side_by_side else (arm_of(self.request),)

    @property
    def work(self) -> float:
        work = self.request.workload
        return float(len(self.arms) * work.rows * self.request.steps * work.grid.volume)

    def remaining(self) -> float | None:
        update, made = self.update, [result.seconds["total"] for result in self.results.values()]
        if update is None or update.phase in ("text", "encode"):
            return None
        if update.phase == "decode":
            this_one = 0.0  # short beside denoising, and nothing says how short
            whole = made[-1] if made else None
        elif update.step == 0:
            return None
        else:
            per_step = update.seconds / update.step
            this_one = per_step * (update.total - update.step)
            whole = made[-1] if made else per_step * update.total
        others = len(self.arms) - len(made) - 1
        if others > 0 and whole is None:
            return None
        return this_one + max(0, others) * (whole or 0.0)

    def run(self, pipeline: Generator, on_step: OnStep) -> None:
        self._keep_clip()
        watched = _Watched(pipeline, self)
        if self.side_by_side:
            self.comparison = compare(watched, self.request, on_step, self.folder)
        else:
            watched.generate_frames(self.request, on_step, self.folder / f"{self.arms[0]}.mp4")

    def _keep_clip(self) -> None:
        """A clip to refine may be an upload, or a run that is deleted one day: the job keeps its own copy."""
        start = self.request.start
        if not isinstance(start, FromClip):
            return
        kept = self.folder / "clip.mp4"
        try:
            shutil.copyfile(start.clip, kept)
        except FileNotFoundError:
            raise ValueError("the clip to refine is gone; choose it again") from None
        self.request = replace(self.request, start=start.at(kept.absolute()))

    def report(self) -> dict[str, Any]:
        """What was asked for, made and measured, ready for JSON. Videos are named, not located: the reader may
        be on another machine, and an infinite PSNR (two equal videos) becomes null, which JSON can say."""
        if self.comparison is None:
            return plain(self.results[self.arms[0]].to_dict())
        return plain(self.comparison.to_dict())


class _Watched:
    """A pipeline that notes in the job which video is being made and which is finished."""

    def __init__(self, pipeline: Generator, job: VideoJob) -> None:
        self.device = pipeline.device
        self._pipeline = pipeline
        self._job = job

    def generate_frames(
        self, request: VideoRequest, on_step: OnStep | None, output: Path
    ) -> tuple[VideoResult, np.ndarray]:
        job = self._job
        job.begin_video(arm_of(request))
        result, frames = self._pipeline.generate_frames(request, on_step, output)
        job.results = {**job.results, job.arm: result}
        job.version += 1
        return result, frames


def tell(listeners: Sequence[Listener], job: Job) -> None:
    """Call each with the job; one that fails harms nobody else."""
    for listener in listeners:
        try:
            listener(job)
        except Exception:
            log.exception("a listener failed on job %s", job.id)


def plain(value: Any, key: str = "") -> Any:
    """Values as JSON has them: no infinities, and a video by its file name."""
    if isinstance(value, dict):
        return {name: plain(entry, name) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return Path(value).name if key == "video" and value is not None else value


def arm_of(request: VideoRequest) -> str:
    return "dense" if request.bsa is None else "sparse"
