"""Makes a chain of videos as a job, one after the other: dense, sparse, or both, each as a chain of its own.

A chain lies in a folder of the job, dense/ or sparse/, as the command line makes it. Beside them, made.json keeps the
result of every part. So a stopped, failed or interrupted job still has its finished parts, and another job can go on
after any of them.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image

from pipeline import Comparison, VideoResult
from pipeline.machine.memory import release_memory
from pipeline.machine.whole_files import write_whole
from pipeline.request.result import Generator, OnStep, read_comparison
from pipeline.request.video import VideoRequest
from pipeline.runs.chain import ChainStore, make_next
from pipeline.runs.long_refinement import LongRefinement
from pipeline.runs.long_result import compare_segments, joined_comparison, joined_result
from pipeline.runs.long_video import LongVideo
from ui.jobs.job import ARMS, VideoJob, plain
from ui.jobs.records import stored_result
from ui.storage.files import job_folder
from ui.storage.store import Record

log = logging.getLogger("ui")

LIST = "made.json"
PICTURE_HEIGHT = 160  # pixels


@dataclass(frozen=True)
class Segment:
    """The results of one part by arm, and how alike two of them are."""

    results: dict[str, VideoResult]
    comparison: Comparison | None = None

    def to_dict(self) -> dict[str, Any]:
        figures = {} if self.comparison is None else self.comparison.figures()
        return {arm: result.to_dict() for arm, result in self.results.items()} | figures


@dataclass(eq=False)
class ChainJob(VideoJob):
    """A chain of videos. Every one is a part of the job: between two of them it lets others pass.

    checkpoint: name of the checkpoint that makes it.
    source: folder of an earlier job whose first `kept` parts this one begins with; they are copied.
    segments: the parts that are finished, kept ones included. number: of the one being made, from 0.
    """

    PLACE: ClassVar[str]  # which part is being made, in words with {number} and {total}
    checkpoint: str = field(default="", kw_only=True)
    source: Path | None = field(default=None, kw_only=True)
    kept: int = field(default=0, kw_only=True)
    segments: list[Segment] = field(default_factory=list, init=False)
    number: int = field(default=0, init=False)
    _stores: dict[str, ChainStore] = field(default_factory=dict, init=False)

    @classmethod
    def of(cls, plan: LongVideo | LongRefinement, side_by_side: bool, **options: Any) -> Self:
        """A job for the plan. options: checkpoint, source and kept."""
        job = cls(plan.as_one, side_by_side, **options)
        job.long = plan
        return job

    @property
    def plan(self) -> LongVideo | LongRefinement:
        assert self.long is not None  # `of` sets it
        return self.long

    def take_sources(self) -> None:
        """Keep the files that the whole is made from in the job's folder, and let the plan name them there."""
        raise NotImplementedError

    @property
    def requests(self) -> list[VideoRequest]:
        """The requests of all parts. Those that go on from another name its end, a file that does not exist yet."""
        numbers = range(self.kept, len(self.plan))
        return [self.chain(arm).segment(number, Path("end.mp4")) for number in numbers for arm in self.arms]

    @property
    def made(self) -> list[VideoResult]:
        return [result for segment in self.segments[self.kept :] for result in segment.results.values()]

    @property
    def playable(self) -> bool:
        return bool(self.results or self.segments)

    @property
    def place(self) -> str:
        return self.PLACE.format(number=self.number + 1, total=len(self.plan))

    @property
    def sparse_first(self) -> bool:
        """Never: most segments keep keys and values, see `VideoJob.sparse_first`, and windows come as segments do."""
        return False

    @property
    def unfinished(self) -> bool:
        return not self.results

    @property
    def parts(self) -> float:
        return max(0.5, len(self.plan) - max(self.kept, len(self.segments)))

    def remaining(self) -> float | None:
        update, seconds = self.update, [result.seconds["total"] for result in self.made]
        if update is None or update.phase in ("text", "encode") or (update.phase == "denoise" and not update.step):
            return None
        per_step = update.seconds / update.step if update.phase == "denoise" else 0.0
        whole = sum(seconds) / len(seconds) if seconds else per_step * update.total
        ahead = len(self.arms) * (len(self.plan) - self.number) - 1 - self.arms.index(self.arm)
        return per_step * (update.total - update.step) + ahead * whole if whole else None

    def run(self, pipeline: Generator, on_step: OnStep) -> None:
        if not self._stores:
            self._begin()
        self.number = len(self.segments)
        if self.number < len(self.plan):
            self._make(pipeline, on_step)
        if len(self.segments) == len(self.plan):
            self._join()

    def _begin(self) -> None:
        """Keep what the whole is made from, and copy the parts that are kept."""
        self.take_sources()
        self.request = self.plan.as_one
        stores = {arm: ChainStore(self.folder / arm, self.chain(arm), self.checkpoint) for arm in self.arms}
        if self.kept and self.source is not None:
            for arm, store in stores.items():
                store.take_over(self.source / arm, self.kept)
                for number in range(self.kept):
                    before, after = self.source / arm / store.video(number).name, store.video(number)
                    picture_of(after).write_bytes(picture_of(before).read_bytes())
            self.segments = read_segments(self.source, self.folder)[: self.kept]
            self._write()
        self._stores = stores

    def chain(self, arm: str) -> LongVideo | LongRefinement:
        """The plan of one of the videos."""
        return self.plan.dense if arm == "dense" else self.plan

    def _make(self, pipeline: Generator, on_step: OnStep) -> None:
        made: dict[str, tuple[VideoResult, np.ndarray]] = {}
        overlap = self.plan.overlap(self.number)
        for arm in self.arms:
            store = self._stores[arm]
            store.parts = store.parts[: self.number]  # of a pair, one may be there without the other: it is made again
            self.begin_video(arm)
            result, frames = made[arm] = make_next(pipeline, self.chain(arm), store, on_step)
            write_picture(frames[overlap:], picture_of(result.video))
            release_memory()  # what one left in the allocator's cache must not burden the next
        pair = compare_segments(made["dense"], made["sparse"], overlap) if self.side_by_side else None
        self.segments = [*self.segments, Segment({arm: result for arm, (result, _) in made.items()}, pair)]
        self._write()
        self.version += 1

    def _join(self) -> None:
        results = {}
        for arm, store in self._stores.items():
            video = store.join(self.folder / f"{arm}.mp4").video
            results[arm] = joined_result(self.chain(arm), [segment.results[arm] for segment in self.segments], video)
        pairs = [segment.comparison for segment in self.segments if segment.comparison is not None]
        if self.side_by_side:
            self.comparison = joined_comparison(results["dense"], results["sparse"], pairs)
        self.results = results
        self.version += 1

    def _write(self) -> None:
        made = [segment.to_dict() for segment in self.segments]
        write_whole(self.folder / LIST, json.dumps(plain(made), indent=2))

    def report(self) -> dict[str, Any]:
        """As that of any other video, and "segments" or "windows": the same of each of them."""
        return super().report() | {f"{self.plan.name}s": plain([segment.to_dict() for segment in self.segments])}

    def end(self, *how: Any) -> None:
        self._stores = {}
        super().end(*how)


def picture_of(video: Path) -> Path:
    """The file with a small picture from the middle of a part."""
    return video.with_suffix(".jpg")


def write_picture(frames: np.ndarray, file: Path) -> None:
    picture = Image.fromarray(frames[len(frames) // 2])
    picture.thumbnail((4 * PICTURE_HEIGHT, PICTURE_HEIGHT))
    picture.save(file, quality=85)


def read_segments(folder: Path, here: Path | None = None) -> list[Segment]:
    """The finished parts in a job's folder, as far as their files are there.

    here: the folder in which their files are looked for, if they were copied to another.
    """
    try:
        listed = json.loads((folder / LIST).read_text(encoding="utf-8"))
        found: list[Segment] = []
        for values in listed:
            made = {arm: stored_result(values[arm], (here or folder) / arm) for arm in ARMS if arm in values}
            results = {arm: result for arm, result in made.items() if result is not None}
            if not results or len(results) < len(made):
                break
            pair = read_comparison(results["dense"], results["sparse"], values) if len(results) == 2 else None
            found.append(Segment(results, pair))
        return found
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning("the segments in %s could not be read back: %s", folder, error)
        return []


def read_back(job: ChainJob, record: Record, folder: Path) -> None:
    """Give a restored job what there is of it in its folder."""
    report = record.report or {}
    if job_folder(folder.parent, folder.name) is None:
        return
    for arm in job.arms:
        if (result := stored_result(report.get(arm), folder)) is not None:
            job.results[arm] = result
    if len(job.results) == 2:
        job.comparison = read_comparison(job.results["dense"], job.results["sparse"], report)
    job.segments = read_segments(folder)
