"""Adds up the results of a long video's segments, or of the windows in which one is refined: measurements of the whole,
and the likeness of two long videos."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.media.similarity import psnr_of_frames, ssim
from pipeline.request.result import Comparison, VideoResult, speed
from pipeline.request.timing import Speed
from pipeline.runs.long_refinement import LongRefinement
from pipeline.runs.long_video import LongVideo


def joined_result(plan: LongVideo | LongRefinement, segments: Sequence[VideoResult], video: Path) -> VideoResult:
    """The result of the whole: seconds are those of all segments, the memory is their peak. What is said of the blocks
    is said of the last segment, because all but the first are like it.

    video: the joined file. segments: one for each of the plan's, in their order.
    """
    last = segments[-1]
    names = dict.fromkeys(name for one in segments for name in one.seconds)
    return VideoResult(
        request=plan.as_one,
        video=video,
        seconds={name: sum(one.seconds.get(name, 0.0) for one in segments) for name in names},
        peak_memory=max(one.peak_memory for one in segments),
        peak_memory_label=last.peak_memory_label,
        density=last.density,
        blocks_kept=last.blocks_kept,
        blocks_total=last.blocks_total,
        bsa_active=last.bsa_active,
        bsa_reason=last.bsa_reason,
        versions=last.versions,
        passes=_total([one.passes for one in segments]),
        skipped=_total([one.skipped for one in segments]),
    )


def _total(counts: list[int | None]) -> int | None:
    """Their sum; None if one of them is not known."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def compare_segments(
    dense: tuple[VideoResult, np.ndarray], sparse: tuple[VideoResult, np.ndarray], overlap: int
) -> Comparison:
    """Compare the same segment of two long videos by the frames that are new in it.

    dense, sparse: the result and all frames of each, uint8 [T, H, W, 3]. overlap: number of frames that the segment
        before has already. The two differ already where they begin, except in the first segment.
    """
    frames = dense[1][overlap:], sparse[1][overlap:]
    whole, each = psnr_of_frames(*frames)
    return Comparison(dense[0], sparse[0], speed(dense[0], sparse[0]), whole, ssim(*frames), each)


def joined_comparison(dense: VideoResult, sparse: VideoResult, segments: Sequence[Comparison]) -> Comparison:
    """The comparison of two long videos from those of their segments.

    dense, sparse: results of the whole, see `joined_result`.
    """
    frames = tuple(value for one in segments for value in one.frames)
    error = sum(10 ** (-value / 10) for value in frames) / len(frames)  # as shares of the largest possible one
    alike = sum(one.ssim * len(one.frames) for one in segments) / len(frames)
    psnr = math.inf if error == 0 else -10 * math.log10(error)
    return Comparison(dense, sparse, _joined_speed(segments), psnr, alike, frames)


def _joined_speed(segments: Sequence[Comparison]) -> Speed:
    """All dense work over all sparse work. A segment in doubt brings its doubts along."""
    work = [one.sparse.work for one in segments]

    def mean(values: list[float]) -> float:
        return sum(value * share for value, share in zip(values, work, strict=True)) / sum(work)

    return Speed(
        ratio=mean([one.speed.ratio for one in segments]),
        low=mean([one.speed.low for one in segments]),
        high=mean([one.speed.high for one in segments]),
        clock=segments[0].speed.clock,
        doubts=tuple(dict.fromkeys(doubt for one in segments for doubt in one.speed.doubts)),
    )
