"""LongCat's rules for refining: the size it makes of a clip, the latent frames, and the part of the schedule that runs.

The numbers of `generate_refine` in LongCat-Video's pipeline_longcat_video.py (arXiv 2510.22200, 4.3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

# LongCat's 720p sizes as (height, width): multiples of 64, which 4 x 4 token chunks divide, of about 960 x 960 pixels.
# A clip gets the one whose ratio of height to width, rounded to two digits, is nearest to its own.
SIZES = (
    (448, 2048), (512, 1792), (576, 1600), (640, 1408), (704, 1280), (768, 1216), (832, 1088), (896, 1024), (960, 960),
    (1024, 896), (1088, 832), (1152, 768), (1216, 768), (1280, 704), (1344, 704), (1408, 640), (1472, 640), (1536, 576),
    (1664, 576), (1856, 512), (1920, 512),
)  # fmt: skip
SIDE, STEP = 960, 16  # pixels: of the square size, and of a token
NATIVE_PIXELS = 832 * 480  # of LongCat-Video's own clips, which become those
STEPS = 50  # of the schedule of which the part below the noise level runs
LATENT_GROUP = 4  # latent frames come in whole groups of these, as in the original, dense or sparse


def latent_frames(frames: int) -> int:
    """Latent frames for so many frames of the result, the last group filled up with copies of the last frame."""
    needed = 1 + math.ceil((frames - 1) / 4)
    return math.ceil(needed / LATENT_GROUP) * LATENT_GROUP


def refined_size(height: int, width: int, native_pixels: int = NATIVE_PIXELS) -> tuple[int, int]:
    """Height and width that a clip of `height` x `width` is refined to.

    native_pixels: per frame, of the clips that the checkpoint makes. A smaller one than LongCat-Video takes a step up
    of the same proportion from its own size.
    """
    ratio = height / width
    if native_pixels == NATIVE_PIXELS:
        return min(SIZES, key=lambda size: abs(round(size[0] / size[1], 2) - ratio))
    side = SIDE * math.sqrt(native_pixels / NATIVE_PIXELS)
    high, wide = (max(1, round(length / STEP)) * STEP for length in (side * math.sqrt(ratio), side / math.sqrt(ratio)))
    return high, wide


def steps_run(steps: int, t_thresh: float, shift: float) -> int:
    """Number of steps that run out of `steps`: one at the noise level, and all below it in the schedule.

    shift: of the checkpoint's scheduler.
    """
    levels = (1 - 0.999 * index / max(1, steps - 1) for index in range(steps))
    return 1 + sum(shift * level / (1 + (shift - 1) * level) < t_thresh for level in levels)


@dataclass(frozen=True)
class Clip:
    """A readable MP4 file: its number of frames, their size in pixels and frames per second (rounded)."""

    path: Path
    frames: int
    height: int
    width: int
    fps: int
