"""Turns measurements into one number: the weighted median of the nearest ones in size and kind."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from bsa import BSAConfig, Grid
from pipeline.estimate import cost
from pipeline.request.result import VideoResult
from pipeline.request.video import VideoRequest

_OTHER_KIND = 1.0  # distance between dense and sparse attention; a run of one kind weighs 1/e for the other
_HALF_LIFE = 12  # a run weighs half after so many later ones, because the load of a machine changes


class Run:
    """A finished video as the ledger keeps it: size and settings without the prompt, seconds and memory.

    ratios: measured over counted seconds by phase, and of "work" where it is known; set by the estimator.
    """

    def __init__(self, kept: dict[str, Any]) -> None:
        frames, height, width = kept["size"]
        self.request = VideoRequest(
            prompt="-",
            num_frames=frames,
            height=height,
            width=width,
            steps=kept["steps"],
            guidance_scale=2.0 if kept["guided"] else 1.0,
            fps=15,
            bsa=None if kept["bsa"] is None else BSAConfig.from_bsa_params(kept["bsa"]),
        )
        self.density = float(kept["density"])
        self.seconds = {phase: float(seconds) for phase, seconds in kept["seconds"].items()}
        self.memory = int(kept["memory"])
        # of denoising on the clock of `Timing`; runs of earlier versions have none
        self.work = float(kept["work"]) if kept.get("work") else None
        self.ratios: dict[str, float] = {}
        self.traits = _Traits.of(self.request)


def kept_run(result: VideoResult) -> dict[str, Any]:
    """The values of a result that the ledger keeps, ready for JSON. `Run` reads them."""
    request = result.request
    seconds = {phase: result.seconds[phase] for phase in ("text", "denoise", "decode")}
    seconds["file"] = max(0.0, result.seconds["total"] - sum(seconds.values()))
    return {
        "size": [request.num_frames, request.height, request.width],
        "steps": request.steps,
        "guided": request.workload.rows == 2,
        "bsa": request.bsa.to_bsa_params() if request.bsa is not None and result.bsa_active else None,
        "density": result.density,
        "seconds": seconds,
        "memory": result.peak_memory,
        **({} if result.timing is None else {"work": result.timing.denoise}),
    }


class _Traits(NamedTuple):
    """The traits by which requests are compared. Those whose ratio counts are logarithms."""

    tokens: float
    sparse: bool
    kept: float  # share of the key blocks
    chunk: Grid | None
    size: tuple[int, int]
    area: float
    frames: float

    @classmethod
    def of(cls, request: VideoRequest) -> _Traits:
        work = request.workload
        kept, chunk = 1.0, None
        if work.bsa is not None and work.blocks is not None:
            blocks = cost.kept_blocks(work.bsa, work.grid, conditioning=work.conditioning)
            kept, chunk = blocks / work.blocks.k_blocks.volume, work.bsa.chunk_k
        return cls(
            tokens=math.log(work.grid.volume),
            sparse=work.sparse,
            kept=math.log(kept),
            chunk=chunk,
            size=(request.height, request.width),
            area=math.log(request.height * request.width),
            frames=math.log(request.num_frames),
        )

    def attention_distance(self, other: _Traits) -> float:
        away = abs(self.tokens - other.tokens)
        if self.sparse != other.sparse:
            return away + _OTHER_KIND
        return away + 0.5 * abs(self.kept - other.kept) + 0.5 * (self.chunk != other.chunk)

    def picture_distance(self, other: _Traits) -> float:
        # The speed of convolutions jumps with the frame's size; the number of frames only multiplies the time.
        away = 0.7 * (self.size != other.size) + 1.5 * abs(self.area - other.area)
        return away + 0.3 * abs(self.frames - other.frames)


def weigh(request: VideoRequest, runs: list[Run], phase: str) -> list[float]:
    """The weight of each run, oldest first, for the estimate of one phase of the request."""
    here, last = _Traits.of(request), len(runs) - 1
    distance = here.attention_distance if phase == "denoise" else here.picture_distance
    return [math.exp(-distance(run.traits)) * 0.5 ** ((last - i) / _HALF_LIFE) for i, run in enumerate(runs)]


def density_of(request: VideoRequest, runs: list[Run]) -> float | None:
    """The measured density of runs with the same cdf threshold; None if the rule itself fixes the density."""
    if request.bsa is None or request.bsa.selector.uniform:
        return None
    weights = weigh(request, runs, "denoise")
    return weighted_median(
        (run.density, weight) for run, weight in zip(runs, weights) if run.request.bsa == request.bsa
    )


def weighted_median(values: Iterable[tuple[float, float]]) -> float | None:
    """The weighted median of (value, weight) pairs, or None if there are none.

    If two values split the weight in half, it is their mean.
    """
    ordered = sorted(value for value in values if value[1] > 0)
    half, below = sum(weight for _, weight in ordered) / 2, 0.0
    for index, (value, weight) in enumerate(ordered):
        below += weight
        if below > half * (1 + 1e-9):
            return value
        if below >= half * (1 - 1e-9):
            return (value + ordered[min(index + 1, len(ordered) - 1)][0]) / 2
    return None
