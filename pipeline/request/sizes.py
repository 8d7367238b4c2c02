"""LongCat's sizes of videos, by the shape of the picture or clip that they are made from.

Source: bukcet_config.py in LongCat-Video's code, for one GPU.
"""

from __future__ import annotations

import math

Size = tuple[int, int]  # height and width, pixels

# Of about 627 x 627 pixels, multiples of 32, for videos from a picture or a clip; and of about 960 x 960 pixels,
# multiples of 64, for refining.
SIZES_480P: tuple[Size, ...] = (
    (320, 1216), (352, 1120), (384, 1024), (416, 960), (448, 864), (480, 832), (512, 768), (544, 736), (576, 672),
    (608, 640), (640, 608), (672, 576), (704, 544), (736, 544), (768, 512), (800, 480), (832, 480), (896, 448),
    (960, 416), (992, 384), (1056, 384), (1088, 352), (1184, 320), (1216, 320), (1248, 320), (1280, 320),
)  # fmt: skip
SIZES_720P: tuple[Size, ...] = (
    (448, 2048), (512, 1792), (576, 1600), (640, 1408), (704, 1280), (768, 1216), (832, 1088), (896, 1024), (960, 960),
    (1024, 896), (1088, 832), (1152, 768), (1216, 768), (1280, 704), (1344, 704), (1408, 640), (1472, 640), (1536, 576),
    (1664, 576), (1856, 512), (1920, 512),
)  # fmt: skip
NATIVE_PIXELS = 832 * 480  # per frame, of LongCat-Video's own clips
STEP = 16  # pixels of a token


def nearest(height: int, width: int, sizes: tuple[Size, ...]) -> Size:
    """The size whose ratio of height to width, rounded to two digits, is nearest to that of height x width."""
    return min(sizes, key=lambda size: abs(round(size[0] / size[1], 2) - height / width))


def of_shape(height: int, width: int, pixels: float) -> Size:
    """The shape of height x width with about so many pixels, whole tokens on each side."""
    side, ratio = math.sqrt(pixels), math.sqrt(height / width)
    return max(1, round(side * ratio / STEP)) * STEP, max(1, round(side / ratio / STEP)) * STEP


def video_size(height: int, width: int, native_pixels: int = NATIVE_PIXELS) -> Size:
    """The size of a video that is made from a picture or clip of height x width.

    native_pixels: per frame, of the clips that the checkpoint makes. One of another size than LongCat-Video gets the
    same shape in its own number of pixels.

    Raises ValueError for a shape that none of LongCat's sizes comes near to.
    """
    if not 1 / 5 < height / width < 5:
        raise ValueError(f"{width} x {height} pixels are too narrow for a video; cut it to between 1:4 and 4:1")
    if native_pixels == NATIVE_PIXELS:
        return nearest(height, width, SIZES_480P)
    return of_shape(height, width, native_pixels)
