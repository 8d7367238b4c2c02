"""Reading the frames of a clip that is to be refined."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from pipeline.machine.paths import expand_user
from pipeline.request.refinement import Clip

MAX_FRAMES = 1000
MAX_PIXELS = 4096 * 4096
# Only a file, and only this container: others can name further files, or hosts, that the server could read.
_INPUT = ["-protocol_whitelist", "file", "-f", "mov"]




def inspect_clip(path: str | Path) -> Clip:
    """Decode a clip once to know that it can be read, and what is in it.

    Raises:
        ValueError: there is no such file, it is no MP4 video, or it is too long or too large.
    """
    path = _existing(path)
    state = path.stat()
    return _inspect(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=32)
def _inspect(path: Path, changed: int, size: int) -> Clip:
    frames = 0
    for frame in _frames(path):
        frames += 1
        height, width = frame[1]
        fps = frame[2]
    return Clip(path, frames, height, width, max(1, min(120, round(fps))))


def read_clip(path: str | Path) -> np.ndarray:
    """All frames, uint8 [T, H, W, 3]. Raises ValueError as `inspect_clip` does."""
    path = _existing(path)
    return np.stack([np.frombuffer(data, np.uint8).reshape(*size, 3) for data, size, _ in _frames(path)])


def _existing(path: str | Path) -> Path:
    path = expand_user(path)
    try:
        with path.open("rb") as stream:
            kind = stream.read(12)[4:8]
    except OSError as error:
        raise ValueError(f"cannot read the clip {path}: {error.strerror}; check the path") from None
    if kind != b"ftyp":
        raise ValueError(f"the clip {path.name} is not an MP4 video; convert it, for example with ffmpeg")
    return path.absolute()


def _frames(path: Path) -> Iterator[tuple[bytes, tuple[int, int], float]]:
    """(rgb24 bytes, (height, width), frames per second) of each frame."""
    damaged = f"the clip {path.name} cannot be decoded; copy or download it again"
    count = 0
    try:
        import imageio_ffmpeg  # not everywhere: a machine that only measures the GPU has no ffmpeg

        reader = imageio_ffmpeg.read_frames(str(path), input_params=_INPUT)
        about = next(reader)
        width, height = about["size"]
        if width * height > MAX_PIXELS:
            raise ValueError(f"the clip {path.name} is {width} x {height}; use one of at most 4096 x 4096 pixels")
        for data in reader:
            count += 1
            if count > MAX_FRAMES:
                raise ValueError(f"the clip {path.name} has more than {MAX_FRAMES} frames; cut it into shorter ones")
            yield data, (height, width), about["fps"]
    except (OSError, RuntimeError, StopIteration, KeyError):
        raise ValueError(damaged) from None
    if not count:
        raise ValueError(damaged)
