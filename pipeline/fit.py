"""How measurements become one number: the weighted median of those nearest in size and kind."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from bsa import BSAConfig

from . import cost
from .request import VideoRequest, VideoResult

_OTHER_KIND = 1.0  # distance of dense and sparse attention: one counts 1/e for the other
_HALF_LIFE = 12  # runs after which an old one counts half: the load of a machine changes


class Run:
    """A finished video, as the ledger keeps it: its size and settings without the prompt, and what it took.

    ratios: by phase, measured over counted seconds; set by the estimator.
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
        self.ratios: dict[str, float] = {}


def kept_run(result: VideoResult) -> dict[str, Any]:
    """What the ledger keeps of a result, ready for JSON; `Run` reads it."""
    request = result.request
    seconds = {phase: result.seconds[phase] for phase in ("text", "denoise", "decode")}
    seconds["file"] = max(0.0, result.seconds["total"] - sum(seconds.values()))
    return {
        "size": [request.num_frames, request.height, request.width],
        "steps": request.steps,
        "guided": request.guidance_scale > 1,
        "bsa": request.bsa.to_bsa_params() if result.bsa_active else None,
        "density": result.density,
        "seconds": seconds,
        "memory": result.peak_memory,
    }


def weigh(request: VideoRequest, runs: list[Run], phase: str) -> list[float]:
    """How much each run, oldest first, says about a phase of the request."""
    ages = range(len(runs) - 1, -1, -1)
    distance = _attention_distance if phase == "denoise" else _picture_distance
    return [math.exp(-distance(request, run.request)) * 0.5 ** (age / _HALF_LIFE) for run, age in zip(runs, ages)]


def _attention_distance(a: VideoRequest, b: VideoRequest) -> float:
    away = abs(math.log(a.grid.volume / b.grid.volume))
    sparse = a.bsa_status()[0]
    if sparse != b.bsa_status()[0]:
        return away + _OTHER_KIND
    if sparse:
        kept = [cost.kept_blocks(r.bsa, r.grid) / r.bsa.blocks(r.grid).k_blocks.volume for r in (a, b)]
        away += 0.5 * abs(math.log(kept[0] / kept[1])) + 0.5 * (a.bsa.chunk_k != b.bsa.chunk_k)
    return away


def _picture_distance(a: VideoRequest, b: VideoRequest) -> float:
    # How fast convolutions run depends on the size of a frame, by jumps; how many frames there are only multiplies it.
    frame = abs(math.log(a.height * a.width / (b.height * b.width)))
    other = (a.height, a.width) != (b.height, b.width)
    return 0.7 * other + 1.5 * frame + 0.3 * abs(math.log(a.num_frames / b.num_frames))


def density_of(request: VideoRequest, runs: list[Run]) -> float | None:
    """Where a cdf threshold decides, the density of runs with the same rule; None where the rule itself says it."""
    if request.bsa is None or request.bsa.cdf_threshold is None:
        return None
    weights = weigh(request, runs, "denoise")
    return weighted_median(
        (run.density, weight) for run, weight in zip(runs, weights) if run.request.bsa == request.bsa
    )


def weighted_median(values: Iterable[tuple[float, float]]) -> float | None:
    """Of (value, weight); the mean of the two middle ones where they split the weight in half; None of nothing."""
    ordered = sorted(value for value in values if value[1] > 0)
    half, below = sum(weight for _, weight in ordered) / 2, 0.0
    for index, (value, weight) in enumerate(ordered):
        below += weight
        if below > half * (1 + 1e-9):
            return value
        if below >= half * (1 - 1e-9):
            return (value + ordered[min(index + 1, len(ordered) - 1)][0]) / 2
    return None
