"""Reads the image that a video begins with, and stretches frames to a video's size.

Images come from strangers too: the size that the header claims is checked before anything is decoded, and only the
decoders of common formats are tried. The result is what a viewer shows: turned as the camera says, in sRGB's three
channels.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from pipeline.machine.paths import expand_user, open_regular
from pipeline.request.start import Picture

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 2**27  # 134 megapixels, more than cameras have; decoded, 0.4 GB
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # of 8 bits


def inspect_picture(path: str | Path) -> Picture:
    """Decode an image once, to check that it can be read and to learn its size.

    Raises:
        ValueError: the file is no image, is damaged, too large, animated, partly transparent, or has no 8-bit colours.
    """
    path = expand_user(path).absolute()
    with _file(path) as stream:
        state = os.fstat(stream.fileno())
    return _inspect(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=32)
def _inspect(path: Path, changed: int, size: int) -> Picture:
    height, width, _ = read_picture(path).shape
    return Picture(path, height, width)


def read_picture(path: str | Path) -> np.ndarray:
    """The image as it is shown, uint8 [H, W, 3]. Raises ValueError as `inspect_picture` does."""
    from PIL import ImageOps

    path = expand_user(path)
    with _opened(path) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(
                f"the image {path.name} is {width:,} x {height:,}; use one of at most {MAX_PIXELS / 1e6:.0f} megapixels"
            )
        if (pictures := getattr(image, "n_frames", 1)) > 1:
            raise ValueError(
                f"the image {path.name} is an animation of {pictures} pictures; save one of them as PNG, or "
                "convert it to MP4 and continue it"
            )
        if image.mode not in _MODES:
            raise ValueError(
                f"the image {path.name} has colours of another kind than 8 bits ({image.mode}); save it as 8-bit PNG "
                "or JPEG"
            )
        image.load()
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data and np.asarray(upright.convert("RGBA"))[..., 3].min() < 255:
            raise ValueError(
                f"the image {path.name} has transparent parts, which have no colour; put it on a background and save "
                "it without transparency"
            )
        return np.asarray(upright.convert("RGB"))


def stretch(frames: np.ndarray, height: int, width: int) -> Tensor:
    """Resize frames, uint8 [T, H, W, 3], to fp32 [1, 3, T, height, width] in -1 to 1.

    With Lanczos' filter in 8 bits, without keeping the shape, as diffusers' VideoProcessor does for LongCat.
    """
    import torch
    from PIL import Image

    resized = [np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS)) for frame in frames]
    pixels = torch.from_numpy(np.stack(resized)).float().div_(255)
    return pixels.permute(3, 0, 1, 2)[None].mul_(2).sub_(1)


def _file(path: Path) -> BinaryIO:
    try:
        return open_regular(path)
    except OSError as error:
        raise ValueError(f"cannot read the image {path}: {error.strerror}; check the path") from None


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image, of which only the header is read. What PIL raises in the block becomes a sentence."""
    from PIL import Image, UnidentifiedImageError

    with _file(path) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about sizes, which are checked here, and about odd metadata
        try:
            with Image.open(stream, formats=FORMATS) as image:
                yield image
        except UnidentifiedImageError:
            kinds = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
            raise ValueError(f"{path.name} is not a {kinds} image; save it as PNG or JPEG") from None
        except Image.DecompressionBombError:
            raise ValueError(
                f"the image {path.name} is far too large; use one of at most {MAX_PIXELS / 1e6:.0f} megapixels"
            ) from None
        except (OSError, SyntaxError, IndexError, TypeError, OverflowError, MemoryError) as error:
            raise ValueError(
                f"the image {path.name} is damaged ({type(error).__name__}); copy or download it again"
            ) from None
