"""A grid of sparse videos over one or two settings, each measured against a dense video of the same seed and steps."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bsa import Grid
from pipeline.compare import psnr, ssim
from pipeline.memory import out_of_memory, release_memory
from pipeline.record import AttentionRecord, record_path
from pipeline.request import Cancelled, VideoRequest, VideoResult
from pipeline.sweep_axes import Axis, Chunks
from pipeline.sweep_result import SweepResult, SweepVideo
from pipeline.video import prepare_output

if TYPE_CHECKING:
    from pipeline.longcat import LongCatPipeline, OnStep

logger = logging.getLogger("pipeline")

MAX_CELLS = 64


@dataclass(frozen=True)
class SweepRun:
    """One video to make. row, column: its cell, counted from 0; None for a dense reference. name: of its file."""

    row: int | None
    column: int | None
    request: VideoRequest

    @property
    def name(self) -> str:
        if self.row is None:
            return f"dense-seed{self.request.seed}-steps{self.request.steps}.mp4"
        return f"sparse-row{self.row + 1}-column{self.column + 1}.mp4"


@dataclass(frozen=True)
class Sweep:
    """What to make: one sparse video for every pair of a row's and a column's value.

    A swept sparsity or cdf threshold decides alone when the request only has the other rule; when the request has
    both, or both are swept, the rule that keeps more wins, as in `BSAConfig`.

    Attributes:
        request: everything that is not swept; its attention must be sparse.
        rows, columns: what is swept; without columns the grid has one column.

    Raises:
        ValueError: the grid is too large, or a cell cannot be made; the sentence names the first such cell.
    """

    request: VideoRequest
    rows: Axis
    columns: Axis | None = None

    def __post_init__(self) -> None:
        if self.columns is not None and self.columns.name == self.rows.name:
            raise ValueError(f"rows and columns both sweep the {self.rows.label}; choose two different settings")
        if self.request.bsa is None:
            raise ValueError("a sweep needs block sparse attention, and the request is dense; set bsa")
        height, width = self.shape
        if height * width > MAX_CELLS:
            raise ValueError(
                f"{height} x {width} values make {height * width} cells, the limit is {MAX_CELLS}; leave some out"
            )
        for row in range(height):
            for column in range(width):
                try:
                    request = self._cell(row, column)
                    active, reason = request.bsa_status()
                except ValueError as error:
                    raise ValueError(f"the cell {self.describe(row, column)} cannot be made: {error}") from None
                if not active:
                    raise ValueError(f"nothing to sweep: {reason}")

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the grid."""
        return len(self.rows.values), 1 if self.columns is None else len(self.columns.values)

    @property
    def axes(self) -> tuple[Axis, ...]:
        return (self.rows,) if self.columns is None else (self.rows, self.columns)

    def describe(self, row: int, column: int) -> str:
        """The swept values of a cell, such as "sparsity 0.75, seed 3"."""
        return ", ".join(f"{axis.label} {axis.text(index)}" for axis, index in zip(self.axes, (row, column)))

    def runs(self) -> list[SweepRun]:
        """All videos in the order in which they are made: each dense reference, then the cells that it is for."""
        groups: dict[tuple[int, int], list[SweepRun]] = {}
        height, width = self.shape
        for row in range(height):
            for column in range(width):
                request = self._cell(row, column)
                dense = SweepRun(None, None, replace(request, bsa=None))
                group = groups.setdefault((request.seed, request.steps), [dense])
                group.append(SweepRun(row, column, request))
        return [run for group in groups.values() for run in group]

    def _cell(self, row: int, column: int) -> VideoRequest:
        swept = {axis.name: axis.values[index] for axis, index in zip(self.axes, (row, column))}
        bsa = self.request.bsa
        rules = {name: swept[name] for name in ("sparsity", "cdf_threshold") if name in swept}
        if len(rules) == 1 and (bsa.sparsity is None or bsa.cdf_threshold is None):
            rules = {"sparsity": None, "cdf_threshold": None} | rules
        if "chunk" in swept:
            chunks: Chunks = swept["chunk"]
            rules |= {"chunk_q": Grid(*chunks[0]), "chunk_k": Grid(*chunks[1])}
        plain = {name: swept[name] for name in ("seed", "steps") if name in swept}
        return replace(self.request, bsa=replace(bsa, **rules), **plain)


def run_sweep(
    pipeline: LongCatPipeline,
    sweep: Sweep,
    on_step: OnStep | None = None,
    output_dir: Path | str | None = None,
    *,
    on_begin: Callable[[SweepRun], None] | None = None,
    on_result: Callable[[SweepResult], None] | None = None,
) -> SweepResult:
    """Make every video of `sweep` into `output_dir`, with sweep.json and sweep.csv, which grow with each video.

    A video that fails, for want of memory for instance, is noted with its error and the next one is made. Without
    its dense reference a cell has no speed-up and no similarity.

    Args:
        on_step: gets the updates of every generation; may raise `Cancelled` to stop. What is done by then stays
            in the folder and was told to `on_result`.
        on_begin: told each video before it is made.
        on_result: told the result so far after each video.

    Raises:
        ValueError: the folder cannot be written, or not one video could be made (with the error of the first).
        OSError: a finished video could not be written, as those after it could not be.
    """
    result = SweepResult(sweep, (), ())
    for result in sweep_videos(pipeline, sweep, on_step, output_dir, on_begin=on_begin):
        if on_result is not None:
            on_result(result)
    return result


def sweep_videos(
    pipeline: LongCatPipeline,
    sweep: Sweep,
    on_step: OnStep | None = None,
    output_dir: Path | str | None = None,
    *,
    on_begin: Callable[[SweepRun], None] | None = None,
) -> Iterator[SweepResult]:
    """`run_sweep` one video at a time: yields the result so far after each.

    Between two videos the pipeline is free for other work. The decoded frames of the dense reference stay in memory
    until those that are measured against it are made.
    """
    folder = Path(tempfile.mkdtemp(prefix="longcat-sweep-") if output_dir is None else output_dir)
    runs = sweep.runs()
    prepare_output(folder / runs[0].name)
    result = SweepResult(sweep, (), ())
    reference: tuple[VideoResult, np.ndarray] | None = None
    for run in runs:
        if on_begin is not None:
            on_begin(run)
        video = SweepVideo(run.row, run.column, run.request)
        made = _make(pipeline, run, on_step, folder)
        if isinstance(made, str):
            video = replace(video, error=made)
        elif run.row is None:
            video = replace(video, result=made[0])
        else:
            video = _measure(replace(video, result=made[0]), made[1], reference)
        if run.row is None:
            reference = None if isinstance(made, str) else made
        del made  # frames of a large video are hundreds of megabytes
        result = result.add(video)
        result.write(folder)
        yield result
    first = next(result.videos())
    if all(video.result is None for video in result.videos()):
        raise ValueError(f"none of the {len(runs)} videos could be made: {first.error}")


def _make(
    pipeline: LongCatPipeline, run: SweepRun, on_step: OnStep | None, folder: Path
) -> tuple[VideoResult, np.ndarray] | str:
    """The video with its frames, or why there is none."""
    try:
        return pipeline.generate_frames(run.request, on_step, folder / run.name)
    except (Cancelled, OSError):
        raise
    except Exception as error:
        logger.warning("%s could not be made: %s", run.name, error)
        return _sentence(error)
    finally:
        release_memory()  # what one video left in the allocator's cache must not help or burden the next


def _measure(video: SweepVideo, frames: np.ndarray, reference: tuple[VideoResult, np.ndarray] | None) -> SweepVideo:
    video = replace(video, recall=_recall(video.result.video))
    if reference is None:
        return video
    dense, dense_frames = reference
    return replace(
        video,
        speedup=dense.seconds["denoise"] / video.result.seconds["denoise"],
        psnr=psnr(dense_frames, frames),
        ssim=ssim(dense_frames, frames),
    )


def _recall(video: Path) -> float | None:
    """Mean share of the softmax mass inside the kept blocks; None where no attention was recorded."""
    path = record_path(video)
    return AttentionRecord.load(path).summary()["recall"] if path.is_file() else None


def _sentence(error: Exception) -> str:
    if isinstance(error, ValueError):
        return " ".join(str(error).split())
    if out_of_memory(error):
        return "out of memory"
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"
