"""Runs a sweep as a job of the worker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import Comparison, Sweep, SweepResult, SweepRun, VideoRequest, VideoResult, sweep_videos
from pipeline.engine.parent import EngineDied
from pipeline.request.result import Generator, OnStep
from ui.jobs.job import Job, VideoJob, arm_of


@dataclass(eq=False)
class SweepJob(Job):
    """Makes the videos of a sweep one after another. Every video is a part of the job.

    result: the videos made so far, with their measurements. It is kept if the job is stopped or fails.
    current: the video being made, or None between videos.
    """

    sweep: Sweep
    result: SweepResult = field(init=False)
    current: SweepRun | None = field(default=None, init=False)
    requests: list[VideoRequest] = field(init=False)
    _engine: _RestartedPipeline | None = field(default=None, init=False)
    _videos: Iterator[SweepResult] | None = field(default=None, init=False)
    _cells: dict[tuple[int, int], VideoJob] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.result = SweepResult(self.sweep, (), ())
        self.requests = [run.request for run in self.sweep.expected()]

    @property
    def request(self) -> VideoRequest:
        """The request with the settings that are not swept."""
        return self.sweep.request

    @property
    def results(self) -> dict[str, VideoResult]:
        """The finished videos by file name."""
        made = [video.result for video in self.result.videos() if video.result is not None]
        return {result.video.name: result for result in made}

    @property
    def made(self) -> list[VideoResult]:
        """The results so far; estimates learn from them."""
        return list(self.results.values())

    @property
    def total(self) -> int:
        """Number of videos: of those expected before the end, of those made or failed then."""
        return max(self.tried, len(self.requests)) if self.unfinished else self.tried

    @property
    def tried(self) -> int:
        """Number of videos that are made or have failed."""
        return sum(1 for _ in self.result.videos())

    @property
    def work(self) -> float:
        return float(sum(request.steps * request.grid.volume for request in self.requests))

    @property
    def unfinished(self) -> bool:
        return self.sweep.next_run(tuple(self.result.videos())) is not None

    @property
    def parts(self) -> float:
        return max(0.0, self.total - self.tried - self.share)

    @property
    def share(self) -> float:
        """The finished share of the video being made, from 0 to 1."""
        update = self.update
        if self.current is None or update is None or update.phase in ("text", "encode") or not update.total:
            return 0.0
        return update.step / update.total if update.phase == "denoise" else 1.0

    def remaining(self) -> float | None:
        seconds = [video.result.seconds["total"] for video in self.result.videos() if video.result is not None]
        return self.parts * sum(seconds) / len(seconds) if seconds else None

    def run(self, pipeline: Generator, on_step: OnStep) -> None:
        def begin(run: SweepRun) -> None:
            self.current = run
            self.begin_video(arm_of(run.request))

        if self._videos is None or self._engine is None:
            self._engine = _RestartedPipeline(pipeline, self)
            self._videos = sweep_videos(self._engine, self.sweep, on_step, self.folder, on_begin=begin)
        self._engine.pipeline = pipeline
        try:
            self.result = next(self._videos)
            if not self.unfinished:
                next(self._videos, None)  # ends the sweep, with an error if no video could be made
        finally:
            self.current = self.update = self.preview = None
            self.version += 1

    def end(self, *how: Any) -> None:
        self._videos = self._engine = None  # they hold the frames of the dense reference
        super().end(*how)

    def report(self) -> dict[str, Any]:
        return self.result.to_dict()

    def cell(self, row: Any, column: Any) -> VideoJob | None:
        """A cell (counted from 0) and its dense reference as a finished job, or None while the cell has no video."""
        video = next((cell for cell in self.result.cells if (cell.row, cell.column) == (row, column)), None)
        if video is None or video.result is None:
            return None
        if (row, column) not in self._cells:
            reference = self.result.dense_of(video)
            dense = None if reference is None else reference.result
            job = VideoJob(video.request, side_by_side=dense is not None, owner=self.owner)
            job.results = {"sparse": video.result} if dense is None else {"dense": dense, "sparse": video.result}
            speed, psnr, ssim = video.speed, video.psnr, video.ssim
            if dense is not None and speed is not None and psnr is not None and ssim is not None:
                job.comparison = Comparison(dense, video.result, speed, psnr, ssim)
            job.folder, job.state = self.folder, "done"
            job.submitted, job.started, job.ended = self.submitted, self.started, self.ended
            self._cells[row, column] = job
        return self._cells[row, column]


class _RestartedPipeline:
    """A pipeline whose process is restarted for the next video if it died during the previous one, and for the same
    video while the job may lose an engine.

    pipeline: set before each video, because the worker may have loaded it anew, or another engine has the turn.
    """

    def __init__(self, pipeline: Any, job: Job) -> None:
        self.pipeline = pipeline
        self._job = job

    @property
    def device(self) -> Any:
        return self.pipeline.device

    def generate_frames(
        self, request: VideoRequest, on_step: OnStep | None, output: Path
    ) -> tuple[VideoResult, np.ndarray]:
        while True:
            self._job.check_stop()
            if not getattr(self.pipeline, "alive", True):
                self.pipeline.start(lambda message: None)
            try:
                made: tuple[VideoResult, np.ndarray] = self.pipeline.generate_frames(request, on_step, output)
                return made
            except Exception as error:
                self._job.check_stop()  # if the engine was killed to stop the job, it did not fail
                if not isinstance(error, EngineDied) or not self._job.lose_engine():
                    raise
