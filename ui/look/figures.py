"""Words for the figures of a run, and the headline figures that compare its two videos."""

from __future__ import annotations

import math
from typing import NamedTuple

from pipeline import Comparison
from pipeline.request.timing import Speed

TIMES = "{ratio:.2f}×"
BETWEEN = "{low:.1f} to {high:.1f}×"
SPEEDUP, NOT_SURE = "denoising speed-up", "denoising speed-up, not certain"
HOW = "dense seconds ÷ sparse seconds, in {clock}"
IN_DOUBT = "{doubts}. Make both again when the machine is idle."


class Figure(NamedTuple):
    """One headline figure. sure: False where the figure is a range, because something spoke against it."""

    value: str
    name: str
    hint: str
    sure: bool = True


def figures(comparison: Comparison) -> list[Figure]:
    """The figures that compare two videos, most telling first."""
    return [
        speed_figure(comparison.speed),
        Figure(decibels(comparison.psnr), "PSNR", "sparse against dense before compression, higher is closer"),
        Figure(f"{comparison.ssim:.3f}", "SSIM", "before compression; 1 means the same picture"),
        Figure(f"{comparison.sparse.density:.1%}", "of attention computed", "query-key pairs, sparse against dense"),
    ]


def speed_figure(speed: Speed) -> Figure:
    if speed.sure:
        return Figure(times(speed), SPEEDUP, HOW.format(clock=speed.clock))
    doubts = "; ".join(speed.doubts)
    return Figure(times(speed), NOT_SURE, IN_DOUBT.format(doubts=doubts[:1].upper() + doubts[1:]), sure=False)


def times(speed: Speed) -> str:
    """A speed-up, or the range in which it may lie."""
    return TIMES.format(ratio=speed.ratio) if speed.sure else BETWEEN.format(low=speed.low, high=speed.high)


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 100 else f"{value:.0f} s"


def gibibytes(value: float) -> str:
    return f"{value / 2**30:.2f} GiB"


def decibels(value: float) -> str:
    return "identical" if math.isinf(value) else f"{value:.1f} dB"
