"""Chooses the attention of a request: dense or sparse, the sparsity and the scores, and says why.

It weighs time, memory and likeness to the dense video. Times come from measurements on this machine; before there are
any, the usual rules of `pipeline.estimate.advice` decide. Likeness comes from the study in docs/quality.md: there a
lower sparsity always came closer to the dense video, and at the same sparsity cells came closer than means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from bsa import BlockPlan, BSAConfig
from bsa.selectors import CELLS, DEFAULT_SCORES
from pipeline.estimate.advice import WORTH, usual_kind
from pipeline.estimate.estimator import Estimate
from pipeline.request.video import VideoRequest

# From the closest to dense to the fastest.
SPARSITIES = (0.5, 0.75, 0.875, 0.9375)
SCORES = (CELLS, DEFAULT_SCORES)
# Key blocks that a query block keeps at least. In the study 16 of 64 gave a mean PSNR of 35 dB, and 8 of 64 gave 31 dB.
LEAST_KEPT = 16
NEARLY = 1.1  # the closest setting wins among those that take at most so many times the time of the fastest

ONE_FRAME = "automatic: dense, as LongCat always does with a single latent frame"
FEW_BLOCKS = "automatic: dense, because {blocks} key blocks are too few to leave some out"
USUAL_DENSE = (
    "automatic: dense, because {tokens} tokens usually gain little from BSA; this machine has not been measured yet"
)
USUAL_SPARSE = (
    "automatic: sparsity {sparsity} by {scores}, because {tokens} tokens usually gain from BSA; this machine has not "
    "been measured yet"
)
SLOWER = "automatic: dense at about {dense} s of denoising; the fastest BSA setting would take {sparse} s"
FASTER = (
    "automatic: sparsity {sparsity} by {scores} at about {sparse} s of denoising, where dense attention takes {dense} s"
)
KEEPS = "each query block keeps {kept} of {blocks} key blocks"
ROOM_DENSE = "automatic: dense, which fits into memory at about {needed} GiB; BSA would need {other} GiB"
ROOM_SPARSE = (
    "automatic: sparsity {sparsity} by {scores}, which fits into memory at about {needed} GiB; dense attention would "
    "need {other} GiB"
)


def choose_attention(
    request: VideoRequest,
    base: BSAConfig,
    estimate: Callable[[VideoRequest], Estimate | None],
    available: int | None = None,
) -> VideoRequest:
    """The request with the attention that suits it on this machine; `auto` says why.

    Sparse attention is chosen where denoising is expected to be at least `WORTH` times as fast. Of the settings that
    are nearly as fast as the fastest, the one closest to the dense video is taken. None is sparser than ``base``, with
    which the model was trained, or keeps fewer than `LEAST_KEPT` key blocks. A refinement takes ``base`` as it is.

    Args:
        base: the checkpoint's block sparse attention; its chunks and dense steps and layers are kept.
        estimate: returns the expected cost of a request, as `Estimator.estimate` does; None if it is unknown.
        available: bytes of memory for the generation, weights included; None leaves memory out.
    """
    if request.grid.t == 1:
        return _dense(request, ONE_FRAME)
    settings = _settings(request, base)
    if not settings:
        return _dense(request, FEW_BLOCKS.format(blocks=_blocks(replace(request, bsa=base)).k_blocks.volume))
    dense = _dense(request, "")
    expected = {one: estimate(one) for one in (dense, *settings)}
    costs = {one: cost for one, cost in expected.items() if cost is not None}
    if len(costs) < len(expected):
        return _by_rule(request, base)

    fits = {one: available is None or cost.memory <= available for one, cost in costs.items()}
    fitting = [one for one in settings if fits[one]]
    if fits[dense] and not fitting:
        return _dense(request, ROOM_DENSE.format(**_gib(costs[dense], costs[settings[0]])))
    settings = fitting or settings
    if any(cost.seconds is None for cost in costs.values()):
        return _by_rule(request, base)
    seconds = _seconds(costs, dense)
    fastest = min(seconds[one] for one in settings)
    best = next(one for one in settings if seconds[one] <= NEARLY * fastest)
    if fits[best] and not fits[dense]:
        return _sparse(best, ROOM_SPARSE, **_gib(costs[best], costs[dense]))
    if seconds[dense] < WORTH * fastest:
        return _dense(request, SLOWER.format(dense=_text(seconds[dense]), sparse=_text(fastest)))
    return _sparse(best, FASTER, dense=_text(seconds[dense]), sparse=_text(seconds[best]))


def sparsest(request: VideoRequest, base: BSAConfig) -> BSAConfig | None:
    """The sparsest setting that may be chosen for a request, with blocks scored by cells; None if there is none."""
    configs = [one.bsa for one in _settings(request, base) if one.bsa is not None and one.bsa.selector.by_cells]
    return configs[-1] if configs else None


def _settings(request: VideoRequest, base: BSAConfig) -> list[VideoRequest]:
    """The request with each sparse attention that may be chosen, from the closest to dense to the fastest."""
    if request.start.clip is not None:
        return [replace(request, bsa=base)]
    settings = [
        replace(request, bsa=replace(base, sparsity=sparsity, cdf_threshold=None, selection=scores))
        for sparsity in SPARSITIES
        if base.sparsity is None or sparsity <= base.sparsity
        for scores in SCORES
    ]
    return [one for one in settings if _blocks(one).min_kept >= LEAST_KEPT]


def _blocks(request: VideoRequest) -> BlockPlan:
    blocks = request.workload.blocks
    assert blocks is not None  # of a sparse request with several latent frames
    return blocks


def _by_rule(request: VideoRequest, base: BSAConfig) -> VideoRequest:
    if usual_kind(request) == "good":
        bsa = base if request.start.clip is not None else sparsest(request, base)
        return _sparse(replace(request, bsa=bsa), USUAL_SPARSE, tokens=f"{request.grid.volume:,}")
    return _dense(request, USUAL_DENSE.format(tokens=f"{request.grid.volume:,}"))


def _dense(request: VideoRequest, why: str) -> VideoRequest:
    return replace(request, bsa=None, auto=why or None)


def _sparse(request: VideoRequest, why: str, **numbers: object) -> VideoRequest:
    bsa = request.bsa
    assert bsa is not None  # one of `_settings`
    total = _blocks(request).k_blocks.volume
    keeps = KEEPS.format(kept=bsa.selector.kept_words(total), blocks=total)
    sparsity = "none" if bsa.sparsity is None else f"{bsa.sparsity:g}"
    return replace(request, auto=f"{why.format(sparsity=sparsity, scores=bsa.selection, **numbers)}; {keeps}")


def _seconds(costs: Mapping[VideoRequest, Estimate], dense: VideoRequest) -> dict[VideoRequest, float]:
    """Expected seconds of denoising: those of the dense video, and of the others so many times less as they are faster.

    The seconds that videos took grow with whatever else ran; the speed-up is of work that was timed without that.
    """
    full = costs[dense].seconds
    assert full is not None  # or the rules decide
    return {one: full["denoise"] / (cost.speedup(costs[dense]) or 1.0) for one, cost in costs.items()}


def _gib(needed: Estimate, other: Estimate) -> dict[str, str]:
    return {"needed": f"{needed.memory / 2**30:.1f}", "other": f"{other.memory / 2**30:.1f}"}


def _text(seconds: float) -> str:
    return f"{seconds:.3g}" if seconds < 100 else f"{seconds:,.0f}"
