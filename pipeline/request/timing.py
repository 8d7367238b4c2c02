"""Speed-ups that a busy machine does not change: seconds of work, medians of steps, and the doubts that remain.

Wall seconds grow with whatever else runs, and the two videos of a comparison are made one after the other. So work is
timed on a clock that stops while others run: CPU time on a CPU, time between two events of the stream on a GPU. That
clock still drifts with the load (shared caches and cores, another program on the same GPU), so whichever video of a
pair is made second also times a few forward passes of the other kind between its own steps. Any remaining drift shows
in the decoding, which is the same work in both. Imports no PyTorch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.request.workload import Workload

WALL_TIME = "wall time"
SAME = 1.10  # two decodings further apart than this factor were not made on the same machine, so to speak
SHORT = 0.05  # seconds; a shorter decoding says nothing
BUSY = 0.25  # share of the processors that others may take without a doubt
LEAST_DOUBT = 1.15  # factor to either side of a figure in doubt; benchmarks/speed_under_load.py
REFERENCES = 3  # forward passes of the other kind timed between the steps of the second video of a pair

DECODED = "decoding is the same work in both, and it took {factor:.2f} times as long in the {arm} run"
OTHERS = "other programs used {share:.0%} of the processors"


@dataclass(frozen=True)
class Timing:
    """The time of one generation, on a clock that other programs do not advance.

    Attributes:
        clock: "CPU time" (summed over the threads) or "GPU time".
        steps: seconds of the forward pass of every denoising step that ran one, without recording.
        alike: a number for each step; steps of the same number do equal work.
        decode: seconds of decoding.
        others: share of the processors that other programs took meanwhile, 0 to 1; None where that does not matter.
        reference: seconds of forward passes of the other kind over the same latents, timed beside `reference_steps`.
        reference_of: their block sparse attention as `bsa_params`; None for dense passes beside the steps of a sparse
            video.
    """

    clock: str
    steps: tuple[float, ...]
    alike: tuple[int, ...]
    decode: float
    others: float | None = None
    reference: tuple[float, ...] = ()
    reference_of: Mapping[str, Any] | None = None

    @property
    def denoise(self) -> float:
        """Seconds of all steps, each counted as the median of those that do equal work."""
        return self.denoise_by(statistics.median)

    def denoise_by(self, typical: Callable[[list[float]], float]) -> float:
        """Seconds of all steps, each counted as `typical` of the seconds of those that do equal work."""
        groups: dict[int, list[float]] = {}
        for group, seconds in zip(self.alike, self.steps, strict=True):
            groups.setdefault(group, []).append(seconds)
        return sum(len(seconds) * typical(seconds) for seconds in groups.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; `read_timing` reads them back."""
        return asdict(self) | {name: list(getattr(self, name)) for name in _LISTS}


def read_timing(values: Mapping[str, Any] | None) -> Timing | None:
    """Read the output of `Timing.to_dict`; None for a record from before there were timings."""
    if values is None:
        return None
    return Timing(**{**values, **{name: tuple(values[name]) for name in _LISTS}})


_LISTS = ("steps", "alike", "reference")


def reference_steps(steps: int) -> tuple[int, ...]:
    """The steps, counted from 0, beside which one of the other kind is timed: at most `REFERENCES`, spread evenly."""
    count = min(REFERENCES, steps)
    return tuple((2 * number + 1) * steps // (2 * count) for number in range(count))


def equal_work(work: Workload, steps: Sequence[int], layers: int) -> tuple[int, ...]:
    """`Timing.alike` for a generation: dense first steps are one kind, steps that select blocks another, and those that
    take earlier ones a third, but where the data decide how many blocks are kept, every step is a kind of its own.

    steps: those that ran, counted from 0. One also selects where a skipped step right before it would have.
    """
    bsa = work.bsa
    if bsa is None:
        return (0,) * len(steps)
    kinds = []
    for before, step in zip((-1, *steps), steps):
        dense = bsa.dense_layers_at(step, layers)
        if bsa.selector.uniform:
            kinds.append(dense if any(map(bsa.selects_at, range(before + 1, step + 1))) else layers + 1)
        else:
            kinds.append(layers if dense == layers else layers + 1 + step)
    return tuple(kinds)


@dataclass(frozen=True)
class Speed:
    """How much faster the sparse denoising was: dense over sparse seconds on `clock`.

    low, high: where the figure may lie. They differ from `ratio` only if there are doubts.
    doubts: why it is not to be trusted, in words that follow "because"; empty if there is no reason.
    """

    ratio: float
    low: float
    high: float
    clock: str
    doubts: tuple[str, ...] = ()

    @property
    def sure(self) -> bool:
        return not self.doubts

    def to_dict(self) -> dict[str, Any]:
        """Plain values by the names that reports and tables have for them; `read_speed` reads them back."""
        edges = None if self.sure else [self.low, self.high]
        return {"speedup": self.ratio, "speedup_range": edges, "speedup_of": self.clock, "doubts": list(self.doubts)}


def read_speed(values: Mapping[str, Any]) -> Speed | None:
    """What `Speed.to_dict` wrote, also as earlier versions did, who knew the ratio alone; None if there is none."""
    if (ratio := values.get("speedup")) is None:
        return None
    low, high = values.get("speedup_range") or (ratio, ratio)
    return Speed(ratio, low, high, values.get("speedup_of") or WALL_TIME, tuple(values.get("doubts") or ()))


def speed_of(dense: Timing | None, sparse: Timing | None, seconds: tuple[float, float]) -> Speed:
    """Compare two generations that differ only in their attention.

    seconds: wall seconds of denoising, dense and sparse, which count where a timing is missing.
    """
    if dense is None or sparse is None or dense.clock != sparse.clock or not sparse.denoise:
        ratio = seconds[0] / seconds[1]
        return Speed(ratio, ratio, ratio, WALL_TIME)
    full, scale = dense, 1.0
    if sparse.reference:
        full = replace(dense, steps=sparse.reference, alike=(0,) * len(sparse.reference))
        scale = len(dense.steps) / len(full.steps)
    elif dense.reference:
        sparse = _beside_dense(dense.reference, sparse)
    ratio = scale * full.denoise / sparse.denoise
    apart, doubts = 1.0, []
    if min(dense.decode, sparse.decode) >= SHORT:
        apart = dense.decode / sparse.decode
        if max(apart, 1 / apart) > SAME:
            arm = "dense" if apart > 1 else "sparse"
            doubts.append(DECODED.format(factor=max(apart, 1 / apart), arm=arm))
    others = max(dense.others or 0.0, sparse.others or 0.0)
    if others > BUSY:
        doubts.append(OTHERS.format(share=others))
    if not doubts:
        return Speed(ratio, ratio, ratio, dense.clock)
    factor = max(apart, 1 / apart, LEAST_DOUBT)
    low = scale * full.denoise_by(_lower) / sparse.denoise_by(_upper)
    high = scale * full.denoise_by(_upper) / sparse.denoise_by(_lower)
    return Speed(ratio, min(low, ratio / factor), max(high, ratio * factor), dense.clock, tuple(doubts))


def _beside_dense(reference: tuple[float, ...], sparse: Timing) -> Timing:
    """A sparse timing as it would have been during the dense run, in which `reference` are some of its passes.

    Its steps need not do equal work, so each pass is compared with the step that it stands for. The first pass may have
    to select blocks where its step took earlier ones (`select_every`), which the median passes over.
    """
    kinds = list(zip(sparse.alike, sparse.steps, strict=True))
    usual = [
        statistics.median(seconds for kind, seconds in kinds if kind == sparse.alike[step])
        for step in reference_steps(len(sparse.steps))
    ]
    drifts = [then / before for then, before in zip(reference, usual, strict=True) if before]
    drift = statistics.median(drifts) if drifts else 1.0
    return replace(sparse, steps=tuple(drift * seconds for seconds in sparse.steps))


def _lower(seconds: list[float]) -> float:
    return _quartile(seconds, 0.25)


def _upper(seconds: list[float]) -> float:
    return _quartile(seconds, 0.75)


def _quartile(seconds: list[float], share: float) -> float:
    ordered = sorted(seconds)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    return ordered[below] + (place - below) * (ordered[math.ceil(place)] - ordered[below])
