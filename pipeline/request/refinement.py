"""LongCat's rules for refining: the size it makes of a clip, the latent frames, and the part of the schedule that runs.

The numbers of `generate_refine` in LongCat-Video's pipeline_longcat_video.py (arXiv 2510.22200, 4.3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from pipeline.request.sizes import NATIVE_PIXELS, SIZES_720P, nearest, of_shape

SIDE = 960  # pixels of the square size
STEPS = 50  # of the schedule of which the part below the noise level runs
ENHANCED_BELOW, ENHANCED_STEPS = 0.5, 10  # of a continuation's schedule: from this noise level down, so many even steps
LATENT_GROUP = 4  # latent frames come in whole groups of these, as in the original, dense or sparse


def latent_frames(frames: int, given: int = 0) -> int:
    """Latent frames for so many frames of the result, the last group filled up with copies of the last frame.

    given: so many of the first are given. They have groups of their own, filled up at the front.
    """
    if given:
        return given_latents(given) + _whole_groups(math.ceil((frames - given) / 4))
    return _whole_groups(1 + math.ceil((frames - 1) / 4))


def given_latents(frames: int) -> int:
    """Latent frames for so many frames that are given."""
    return _whole_groups(1 + math.ceil((frames - 1) / 4)) if frames else 0


def front_padding(given: int) -> int:
    """Copies of the first frame that fill up the groups of the given ones."""
    return 4 * given_latents(given) - 3 - given if given else 0


def _whole_groups(latents: int) -> int:
    return math.ceil(latents / LATENT_GROUP) * LATENT_GROUP


def refined_size(height: int, width: int, native_pixels: int = NATIVE_PIXELS) -> tuple[int, int]:
    """Height and width that a clip of `height` x `width` is refined to.

    native_pixels: per frame, of the clips that the checkpoint makes. A smaller one than LongCat-Video takes a step up
    of the same proportion from its own size.
    """
    if native_pixels == NATIVE_PIXELS:
        return nearest(height, width, SIZES_720P)
    return of_shape(height, width, SIDE**2 * native_pixels / NATIVE_PIXELS)


def steps_run(steps: int, t_thresh: float, shift: float) -> int:
    """Number of steps that run out of `steps`: one at the noise level, and all below it in the schedule.

    shift: of the checkpoint's scheduler.
    """
    return 1 + sum(level < t_thresh for level in _levels(steps, shift))


def enhanced_steps(steps: int, shift: float) -> int:
    """Number of steps of the schedule for fine details: those of `steps` above the half of the noise, and ten below."""
    return sum(level > ENHANCED_BELOW for level in _levels(steps, shift)) + ENHANCED_STEPS


def _levels(steps: int, shift: float) -> list[float]:
    """The regular schedule's noise levels."""
    levels = (1 - 0.999 * index / max(1, steps - 1) for index in range(steps))
    return [shift * level / (1 + (shift - 1) * level) for level in levels]


@dataclass(frozen=True)
class Clip:
    """A readable MP4 file: its number of frames, their size in pixels and frames per second (rounded)."""

    path: Path
    frames: int
    height: int
    width: int
    fps: int
