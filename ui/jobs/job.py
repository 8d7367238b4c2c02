"""Jobs for the worker. The thread of the engine that it runs on writes a job; all others only read it.

Views watch a job's `version` counter and read its attributes. So several views can follow one job, and a reloaded page
can find its job again.
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
from pipeline.request.result import Generator, OnStep
from pipeline.request.start import FromClip, FromImage, FromNoise, Start
from pipeline.runs.long_refinement import LongRefinement
from pipeline.runs.long_video import LongVideo

log = logging.getLogger("ui")

CLIP_GONE = "the clip to refine is gone; choose it again"
FILE_GONE = "the file that the video begins with is gone; choose it again"

ARMS = ("dense", "sparse")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")  # names of images that can be chosen

Listener = Callable[["Job"], None]


class Mark(NamedTuple):
    """The start of a phase of one video. `time` is `time.time()`."""

    time: float
    arm: str
    phase: str


@dataclass(eq=False)
class Job:
    """One task for a pipeline.

    owner: whose job it is; only the owner sees it. address: where it came from, for who has no login.
    folder: its files, set when it is submitted.
    state: waiting, running, done, stopped or failed. `version` grows with every change.
    arm is the video being made now, "dense" or "sparse". preview is the newest latent preview, uint8 [H, W, 3] or
    [T, H, W, 3], or None; it is computed in the thread of its engine because the latents belong to the running loop.
    marks: when which phase began. submitted, started, ended: `time.time()`, 0 for not yet.
    work: how much there is to do, in a unit that only compares jobs of one class; 0 for unknown.
    errand: whether it is the worker's own business: it has no folder, no report and no place in any history.
    barrier: whether those that wait before it must be done before it, and those after it must not come before it.
    away: seconds that it waited between its turns.
    engine: number of the engine that it runs on, or ran on last, from 0 on.
    lives: how many engines it may lose before it fails. lost: how many it has lost.
    """

    errand: ClassVar[bool] = False
    barrier: ClassVar[bool] = False
    owner: str = field(default="", kw_only=True)
    address: str = field(default="", kw_only=True)
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
    engine: int = field(default=0, init=False)
    lives: int = field(default=1, init=False)
    lost: int = field(default=0, init=False)
    error: str = field(default="", init=False)
    version: int = field(default=0, init=False)
    _stop: threading.Event = field(default_factory=threading.Event, init=False)
    _ending: bool = field(default=False, init=False)

    def run(self, pipeline: Generator, on_step: OnStep) -> None:
        """Run the job, or its next part, in its engine's thread. `on_step` raises `Cancelled` to stop the job."""
        raise NotImplementedError

    @property
    def unfinished(self) -> bool:
        """Whether it has another part. Such a job may give way to others, and is run again."""
        return False

    @property
    def parts(self) -> float:
        """Number of parts left to do. The running part counts with its remaining share."""
        return 1.0

    def report(self) -> dict[str, Any]:
        """The request, the results and the measurements, ready for JSON. Written to report.json at the end."""
        raise NotImplementedError

    @property
    def work(self) -> float:
        return 0.0

    def remaining(self) -> float | None:
        """Seconds that the running job will still take, from the steps so far; None while there are too few."""
        return None

    @property
    def over(self) -> bool:
        """Whether it has ended and all listeners have been called."""
        return self.state in ("done", "stopped", "failed") and not self._ending

    @property
    def stopping(self) -> bool:
        return self._stop.is_set() and not self.over

    def stop(self) -> None:
        """Ask the job to end. A running job ends at its next step."""
        self._stop.set()
        self.version += 1

    def check_stop(self) -> None:
        if self._stop.is_set():
            raise Cancelled

    def lose_engine(self) -> bool:
        """Note that the engine ended under it. Returns whether it may be made once more."""
        self.lost += 1
        return self.lost < self.lives and not self.stopping

    def begin_again(self) -> None:
        """Wait as if it had never begun."""
        self.state, self.arm, self.update, self.preview = "waiting", "", None, None
        self.marks, self.started, self.away = [], 0.0, 0.0
        self.version += 1

    def end(self, state: str, error: str, listeners: Sequence[Listener]) -> None:
        """Set the final state and call the listeners. Only then is the job `over`."""
        self._ending = True
        self.error, self.ended, self.state, self.preview = error, time.time(), state, None
        tell(listeners, self)
        self._ending = False
        self.version += 1

    def begin_video(self, arm: str) -> None:
        self.arm, self.update, self.preview = arm, None, None
        self.version += 1

    def note(self, update: StepUpdate) -> None:
        """Record the progress of the video being made."""
        if self.update is None or self.update.phase != update.phase:
            self.marks.append(Mark(time.time(), self.arm, update.phase))
        self.update = update
        if update.preview is not None:
            self.preview = update.preview()
        self.version += 1


@dataclass(eq=False)
class VideoJob(Job):
    """One press of Generate: one video, or the same clip both dense and sparse.

    results: the finished videos by arm, in the order of `arms`.
    long: the plan of a long video, or of its refinement, of which `request` describes the whole; None for any other.
    speedup: how many times as fast the sparse video is expected to be made; None if that is not known.
    """

    request: VideoRequest
    side_by_side: bool
    long: LongVideo | LongRefinement | None = field(default=None, init=False)
    results: dict[str, VideoResult] = field(default_factory=dict, init=False)
    comparison: Comparison | None = field(default=None, init=False)
    speedup: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.side_by_side:
            self.request.workload.check_comparison()

    @property
    def made(self) -> list[VideoResult]:
        """The results so far, each with its own request; estimates learn from them."""
        return list(self.results.values())

    @property
    def playable(self) -> bool:
        """Whether there is something to look at."""
        return bool(self.results)

    @property
    def place(self) -> str:
        """Which part of the video is being made, in words; "" for a video in one part."""
        return ""

    def asked(self) -> dict[str, Any]:
        """The values from which the job can be made again, ready for JSON."""
        return self.request.to_dict() | {"side_by_side": self.side_by_side}

    @property
    def arms(self) -> tuple[str, ...]:
        """The videos that this job makes, in the order in which they are shown."""
        return ARMS if self.side_by_side else (arm_of(self.request),)

    @property
    def sparse_first(self) -> bool:
        """Whether a pair begins with the sparse video, because it will be there sooner.

        A pair that keeps keys and values does not: beside a dense video of that kind no sparse pass can be timed.
        """
        return self.side_by_side and (self.speedup or 0.0) > 1 and not self.request.workload.cached

    @property
    def work(self) -> float:
        work = self.request.workload
        return float(len(self.arms) * work.rows * self.request.steps * work.grid.volume)

    def remaining(self) -> float | None:
        update = self.update
        if update is None or update.phase in ("text", "encode") or update.step == 0:
            return None
        phase = update.seconds / update.step * update.total
        left = phase - update.seconds
        made = next(iter(self.results.values()), None)
        # decoding is the same work in both videos; before the first one decodes, how long it takes is not known
        decode = 0.0 if made is None else made.seconds.get("decode", 0.0)
        if update.phase == "decode":
            denoise, decode = self._seconds_denoised(), phase
        else:
            denoise, left = phase, left + decode
        if len(self.results) + 1 >= len(self.arms):
            return left
        speedup = self.speedup or 1.0
        return left + denoise * (speedup if self.arm == "sparse" else 1 / speedup) + decode

    def _seconds_denoised(self) -> float:
        """Seconds from the first denoising step to the decoding of the video that is being decoded."""
        began = {mark.phase: mark.time for mark in self.marks if mark.arm == self.arm}
        return began["decode"] - began["denoise"] if began.keys() >= {"denoise", "decode"} else 0.0

    def begin_again(self) -> None:
        self.results, self.comparison = {}, None
        super().begin_again()

    def run(self, pipeline: Generator, on_step: OnStep) -> None:
        self.request = replace(self.request, start=self.keep_source(self.request.start))
        watched = _Watched(pipeline, self)
        if self.side_by_side:
            first = self.sparse_first
            self.comparison = compare(watched, self.request, on_step, self.folder, sparse_first=first)
        else:
            watched.generate_frames(self.request, on_step, self.folder / f"{self.arms[0]}.mp4")

    def keep_source(self, start: Start) -> Start:
        """The start with the clip or image that it names copied into the job's folder, because an upload or an earlier
        run may be deleted later."""
        if isinstance(start, FromNoise):
            return start
        kind = start.source.suffix.lower()
        name = f"image{kind if kind in PICTURES else ''}" if isinstance(start, FromImage) else "clip.mp4"
        kept = self.folder / name
        if start.source == kept.absolute():  # of a job that began before
            return start
        try:
            shutil.copyfile(start.source, kept)
        except FileNotFoundError:
            raise ValueError(CLIP_GONE if isinstance(start, FromClip) else FILE_GONE) from None
        return start.at(kept.absolute())

    def report(self) -> dict[str, Any]:
        """The request, the results and the measurements, ready for JSON.

        Videos are given by file name, because the reader may be on another machine. An infinite PSNR (of equal videos)
        becomes null, because JSON has no infinity.
        """
        if self.comparison is None:
            return plain(self.results[self.arms[0]].to_dict())
        return plain(self.comparison.to_dict())


class _Watched:
    """A pipeline that records in the job which video is being made and which are finished."""

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
        made = {**job.results, job.arm: result}
        job.results = {arm: made[arm] for arm in job.arms if arm in made}
        job.version += 1
        return result, frames


def tell(listeners: Sequence[Listener], job: Job) -> None:
    """Call each listener with the job. If one fails, the others are still called."""
    for listener in listeners:
        try:
            listener(job)
        except Exception:
            log.exception("a listener failed on job %s", job.id)


def plain(value: Any, key: str = "") -> Any:
    """Values for JSON: without infinities, and with videos and images as file names."""
    if isinstance(value, dict):
        return {name: plain(entry, name) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return Path(value).name if key in ("video", "image") and value is not None else value


def arm_of(request: VideoRequest) -> str:
    return "dense" if request.bsa is None else "sparse"
