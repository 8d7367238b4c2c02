"""A sweep as a job of the worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import Comparison, Sweep, SweepResult, SweepRun, VideoRequest, VideoResult, run_sweep
from ui.jobs import Generator, Job, OnStep, VideoJob, arm_of


@dataclass(eq=False)
class SweepJob(Job):
    """The videos of a sweep, one after another.

    result: those that were made so far, with their measurements. It stays when the job is stopped or fails.
    current: the video being made; None between videos.
    """

    sweep: Sweep
    result: SweepResult = field(init=False)
    current: SweepRun | None = field(default=None, init=False)
    requests: list[VideoRequest] = field(init=False)
    _runs: list[SweepRun] = field(init=False)
    _cells: dict[tuple[int, int], VideoJob] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.result = SweepResult(self.sweep, (), ())
        self._runs = self.sweep.runs()
        self.requests = [run.request for run in self._runs]

    @property
    def request(self) -> VideoRequest:
        """What is not swept."""
        return self.sweep.request

    @property
    def results(self) -> dict[str, VideoResult]:
        """The finished videos by file name."""
        made = [video.result for video in self.result.videos() if video.result is not None]
        return {result.video.name: result for result in made}

    @property
    def total(self) -> int:
        return len(self._runs)

    @property
    def tried(self) -> int:
        """Videos that are made or have failed."""
        return sum(1 for _ in self.result.videos())

    @property
    def work(self) -> float:
        return float(sum(request.steps * request.grid.volume for request in self.requests))

    def remaining(self) -> float | None:
        seconds = [video.result.seconds["total"] for video in self.result.videos() if video.result is not None]
        return (self.total - self.tried) * sum(seconds) / len(seconds) if seconds else None

    def run(self, pipeline: Generator, on_step: OnStep) -> None:
        def begin(run: SweepRun) -> None:
            self.current = run
            self.begin_video(arm_of(run.request))

        def take(result: SweepResult) -> None:
            self.result, self.current = result, None
            self.version += 1

        try:
            run_sweep(_Lasting(pipeline, self), self.sweep, on_step, self.folder, on_begin=begin, on_result=take)
        finally:
            self.current = None

    def report(self) -> dict[str, Any]:
        return self.result.to_dict()

    def cell(self, row: Any, column: Any) -> VideoJob | None:
        """A cell counted from 0 as a finished job, beside its dense reference; None while there is no video of it."""
        video = next((cell for cell in self.result.cells if (cell.row, cell.column) == (row, column)), None)
        if video is None or video.result is None:
            return None
        if (row, column) not in self._cells:
            reference = self.result.dense_of(video)
            dense = None if reference is None else reference.result
            job = VideoJob(video.request, side_by_side=dense is not None, owner=self.owner)
            job.results = {"sparse": video.result} if dense is None else {"dense": dense, "sparse": video.result}
            if dense is not None:
                job.comparison = Comparison(dense, video.result, video.speedup, video.psnr, video.ssim)
            job.folder, job.state = self.folder, "done"
            job.submitted, job.started, job.ended = self.submitted, self.started, self.ended
            self._cells[row, column] = job
        return self._cells[row, column]


class _Lasting:
    """A pipeline whose process is started again for the next video when it died over the one before."""

    def __init__(self, pipeline: Generator, job: Job) -> None:
        self.device = pipeline.device
        self._pipeline = pipeline
        self._job = job

    def generate_frames(
        self, request: VideoRequest, on_step: OnStep | None, output: Path
    ) -> tuple[VideoResult, np.ndarray]:
        self._job.check_stop()
        if not getattr(self._pipeline, "alive", True):
            self._pipeline.start(lambda message: None)
        try:
            return self._pipeline.generate_frames(request, on_step, output)
        except Exception:
            self._job.check_stop()  # an engine that was killed to stop the job did not fail
            raise
