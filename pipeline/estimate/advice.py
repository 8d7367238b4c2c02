"""Advises whether BSA is worth using for a request, from the usual rules and from measurements on this machine.

The usual rules recommend BSA at 720p and above, for more than 93 frames and for refinement, but not at 480p and below.
If this machine has been measured, the expected ratio decides instead, and the advice names the number of frames from
which BSA pays. The rule "use it when memory is short" is left out: measurements did not confirm it. BSA saves time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from pipeline.request.start import LATENT_FRAMES
from pipeline.request.video import VideoRequest

LARGE_SIDE = 704  # LongCat's 720p bucket is 704x1280
SMALL_SIDE = 480
LONG_FRAMES = 93
WORTH = 1.15  # expected ratio of denoising times from which BSA is recommended
TIGHT = 0.8  # memory counts as tight above this share of what is available
_MOST_LATENT_FRAMES = 64  # the crossover is searched up to here: 253 frames

PAYS = "BSA pays at this size on this machine."
PAYS_LARGE = "BSA pays at this size on this machine, as it does from 720p on and for long videos."
EVEN = "BSA makes little difference here: both should take about as long."
LOSES = "Full attention should be faster here: choosing the blocks costs more than it saves."
FROM_FRAMES = "At this size BSA should pay from about {frames} frames on."
RECOMMENDED_SIZE = "BSA is recommended at this size: from 720p on, attention is most of the work."
RECOMMENDED_LENGTH = "BSA is recommended for videos of more than 93 frames: attention is most of the work."
NOT_RECOMMENDED = "At 480p and below BSA usually gains little."
BETWEEN = "Between 480p and 720p the gain depends on the length; compare once to see."
MEMORY = "Memory is tight. BSA saves time, not memory, so take fewer frames or a smaller size."


@dataclass(frozen=True)
class Advice:
    """kind: "good", "neutral" or "poor", for the use of BSA in this request. sentences: at most two."""

    kind: str
    sentences: tuple[str, ...]


def advise(
    request: VideoRequest,
    ratio: Callable[[VideoRequest], float | None],
    memory: int | None = None,
    available: int | None = None,
) -> Advice | None:
    """Advice on BSA for a request that uses it.

    Args:
        ratio: returns the expected denoising time of a request, dense over sparse, on this machine; None if this
            machine was not measured.
        memory, available: expected peak and available memory, in bytes.

    Returns None if BSA would not be active anyway, such as for a single frame.
    """
    if not request.workload.sparse:
        return None
    expected = ratio(request)
    kind, sentences = _by_rule(request) if expected is None else _measured(request, expected, ratio)
    if memory and available and memory > TIGHT * available:
        sentences = [sentences[0], MEMORY]
    return Advice(kind, tuple(sentences[:2]))


def usual_kind(request: VideoRequest) -> str:
    """The usual rules on BSA for a request, where the machine was not measured: "good", "neutral" or "poor"."""
    return _by_rule(request)[0]


def _by_rule(request: VideoRequest) -> tuple[str, list[str]]:
    side = min(request.height, request.width)
    if side >= LARGE_SIDE:
        return "good", [RECOMMENDED_SIZE]
    if request.num_frames > LONG_FRAMES:
        return "good", [RECOMMENDED_LENGTH]
    return ("poor", [NOT_RECOMMENDED]) if side <= SMALL_SIDE else ("neutral", [BETWEEN])


def _measured(
    request: VideoRequest, expected: float, ratio: Callable[[VideoRequest], float | None]
) -> tuple[str, list[str]]:
    if expected >= WORTH:
        return "good", [PAYS_LARGE if usual_kind(request) == "good" else PAYS]
    kind, sentence = ("neutral", EVEN) if expected > 1 / WORTH else ("poor", LOSES)
    frames = crossover(request, ratio)
    return kind, [sentence] if frames is None else [sentence, FROM_FRAMES.format(frames=frames)]


def crossover(request: VideoRequest, ratio: Callable[[VideoRequest], float | None]) -> int | None:
    """Number of frames from which BSA is expected to pay at this size and sparsity, or None if that is out of reach."""

    def pays(latent_frames: int) -> bool:
        longer = replace(request, num_frames=LATENT_FRAMES * (latent_frames - 1) + 1)
        return (ratio(longer) or 0) >= WORTH

    low, high = request.latent_shape[0], _MOST_LATENT_FRAMES
    if request.start.clip is not None:  # the clip decides the length
        return None
    if low >= high or not pays(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if pays(middle) else (middle, high)
    return LATENT_FRAMES * (high - 1) + 1
