"""Reads the frames of a clip that is to be refined or continued.

Clips come from strangers, so neither their content nor their headers can be trusted. ffmpeg decodes a clip in a
separate process with limits on memory and time. A clip that claims too many samples is refused before decoding, and
one with too many pixels during it.

The result has square pixels and evenly spaced frames. A clip with other pixels gets another width. A clip with unevenly
spaced frames, as phones and screen recorders make them, keeps its duration and about its number of frames.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np

from pipeline.machine.paths import expand_user, open_regular
from pipeline.media.comment import boxes
from pipeline.media.write import ffmpeg_program
from pipeline.request.refinement import Clip
from pipeline.request.start import LATENT_FRAMES, FromFrames

MAX_FRAMES = 1000
MAX_PIXELS = 4096 * 4096  # of a frame
MAX_TOTAL = 2**30  # pixels of all frames: 1000 of 1365 x 768, 64 of 4096 x 4096
MAX_TRACKS = 100  # that are read, and as many fragments; videos of this project have one track and no fragments
MAX_SAMPLES = 100_000  # of a track; sound has a few dozen samples per video frame
ADDRESS_SPACE = 3 * 2**29  # bytes for ffmpeg; a clip of 4096 x 4096 takes half of it
CPU_SECONDS, WALL_SECONDS = 120, 300  # for ffmpeg; the largest accepted clip needs a tenth of them
LARGEST_LOG = 4 * 2**20  # bytes of ffmpeg's messages about a damaged clip

# Only files, and only this container: others can refer to more files or hosts that the server could read.
# Only two threads, because each thread holds frames in memory.
_INPUT = ["-nostdin", "-nostats", "-threads", "2", "-protocol_whitelist", "file", "-f", "mov"]
# Each frame comes once, as its size followed by its pixels in rgb24; its time is in the log.
_FILTERS = "showinfo=checksum=0,scale=w='clip(round(iw*sar),1,8192)':h=ih,setsar=1"
_OUTPUT = ["-map", "0:v:0", "-vf", _FILTERS, "-fps_mode", "passthrough"]
_OUTPUT += ["-pix_fmt", "rgb24", "-c:v", "ppm", "-f", "image2pipe", "-"]
_FPS = re.compile(rb"Stream #.* Video: .* ([0-9]+\.?[0-9]*) fps")
_TIME = re.compile(rb"showinfo.* n: *\d+ .*pts_time:(-?[0-9.e+-]+)")


def inspect_clip(path: str | Path) -> Clip:
    """Decode a clip once, to check that it can be read and to learn its length, size and rate.

    Raises:
        ValueError: the file does not exist, is not an MP4 video, or is too long or too large.
    """
    path = _existing(path)
    state = path.stat()
    return _inspect(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=32)
def _inspect(path: Path, changed: int, size: int) -> Clip:
    sizes: list[tuple[int, int]] = []
    chosen, fps = _decode(path, lambda data, size: sizes.append(size))
    return Clip(path, len(chosen), *sizes[-1], fps)


def read_clip(path: str | Path) -> np.ndarray:
    """All frames, uint8 [T, H, W, 3]. Raises ValueError as `inspect_clip` does."""
    path = _existing(path)
    frames: list[np.ndarray] = []
    chosen, _ = _decode(path, lambda data, size: frames.append(np.frombuffer(data, np.uint8).reshape(*size, 3)))
    return np.stack([frames[number] for number in chosen])


def check_length(start: FromFrames, frames: int) -> None:
    """ValueError if a clip with so many frames is too short to be continued as asked."""
    if frames >= start.frames_needed:
        return
    spaced = "" if start.stride == 1 else f", {start.stride} frames apart"
    most = (frames - 1) // start.stride // LATENT_FRAMES * LATENT_FRAMES + 1
    raise ValueError(
        f"the clip {start.source.name} has {frames} frame{'s' * (frames > 1)}, and to continue it takes its last "
        f"{start.cond_frames}{spaced}; use a longer clip, or cond_frames {most}"
    )


def even(times: np.ndarray) -> tuple[np.ndarray, float]:
    """Choose evenly spaced frames. Returns their numbers and the frames per second.

    times: ascending times of at least two frames, in seconds.
    """
    span, gaps = times[-1] - times[0], np.diff(times)
    rate = len(gaps) / span
    if np.abs(gaps * rate - 1).max() < 0.5:  # rounded times, or film in a television rhythm
        return np.arange(len(times)), rate
    rate = max(1, min(120, round(rate)))
    moments = times[0] + np.arange(round(span * rate) + 1) / rate
    return np.searchsorted(times, moments + 1e-4, "right") - 1, rate


def _existing(path: str | Path) -> Path:
    path = expand_user(path)
    try:
        with open_regular(path) as stream:
            if stream.read(12)[4:8] != b"ftyp":
                raise ValueError(f"the clip {path.name} is not an MP4 video; convert it, for example with ffmpeg")
            samples = _claimed_samples(stream)
    except OSError as error:
        raise ValueError(f"cannot read the clip {path}: {error.strerror}; check the path") from None
    if samples > MAX_SAMPLES:
        raise ValueError(
            f"the clip {path.name} claims to have {samples} pictures or pieces of sound; use one of at most "
            f"{MAX_FRAMES} frames"
        )
    return path.absolute()


def _claimed_samples(stream: BinaryIO) -> int:
    """The largest number of samples that any track's tables, or all fragments together, announce.

    A few bytes can announce billions, and ffmpeg allocates memory for all of them before it reads the first.
    Source: ISO 14496-12, 8.6 to 8.8.
    """
    most = 0
    for kind, begin, stop in _inside(stream, b"moov", b"trak", b"mdia", b"minf", b"stbl"):
        stream.seek(begin + 4)  # version and flags come first
        if kind in (b"stsz", b"stz2"):
            most = max(most, int.from_bytes(stream.read(8)[4:], "big"))
        elif kind in (b"stts", b"ctts"):  # runs of samples: their number, then their length or offset
            count = min(int.from_bytes(stream.read(4), "big"), (stop - begin) // 8, MAX_SAMPLES)
            data = stream.read(8 * count)
            runs = np.frombuffer(data[: len(data) // 8 * 8], ">u4")[::2]
            most = max(most, int(runs.astype(np.int64).sum()))
    fragments = 0
    for kind, begin, _ in _inside(stream, b"moof", b"traf"):
        if kind == b"trun":
            stream.seek(begin + 4)
            fragments += int.from_bytes(stream.read(4), "big")
    return max(most, fragments)


def _inside(stream: BinaryIO, *kinds: bytes) -> list[tuple[bytes, int, int]]:
    """The boxes (kind, begin, end) found inside this nesting of box kinds in the file."""
    end = stream.seek(0, 2)
    inner = [(b"", 0, end)]
    for kind in (None, *kinds):
        outer = [box for box in inner if kind is None or box[0] == kind][:MAX_TRACKS]
        inner = [(name, begin, min(stop, end)) for _, *place in outer for name, begin, stop in boxes(stream, *place)]
    return inner


def _decode(path: Path, take: Callable[[bytes, tuple[int, int]], None]) -> tuple[np.ndarray, int]:
    """Pass each frame to `take`: rgb24 bytes, (height, width). Return the numbers of those to show, and the rate."""
    damaged = f"the clip {path.name} cannot be decoded; copy or download it again"
    count = 0
    with _decoding(path) as (pictures, log):
        while (head := _head(pictures)) is not None:
            width, height = head
            if width * height > MAX_PIXELS:
                raise ValueError(f"the clip {path.name} is {width} x {height}; use one of at most 4096 x 4096 pixels")
            count += 1
            if count > MAX_FRAMES:
                raise ValueError(f"the clip {path.name} has more than {MAX_FRAMES} frames; cut it into shorter ones")
            if count * width * height > MAX_TOTAL:
                raise ValueError(
                    f"the clip {path.name} has more than {count - 1} frames of {width} x {height}; cut it into shorter "
                    "ones, or make it smaller"
                )
            data = pictures.read(3 * width * height)
            if len(data) < 3 * width * height:
                raise ValueError(damaged)
            take(data, (height, width))
        said = os.pread(log.fileno(), LARGEST_LOG, 0)
    if not count:
        raise ValueError(damaged)
    times = np.array([float(text) for text in _TIME.findall(said)])
    stated = _FPS.search(said)
    chosen, fps = np.arange(count), float(stated[1]) if stated else 0.0
    if len(times) == count > 1 and (np.diff(times) > 0).all():  # without usable times, frames count as even
        most = min(MAX_FRAMES, MAX_TOTAL // (width * height))
        span = times[-1] - times[0]
        if span <= most:
            chosen, fps = even(times)
        if span > most or len(chosen) > most:
            raise ValueError(
                f"the clip {path.name} shows {count} frames in {span:.0f} seconds; cut it into pieces without such "
                "long pauses"
            )
    return chosen, max(1, min(120, round(fps)))


def _head(pictures: IO[bytes]) -> tuple[int, int] | None:
    """Width and height of the next picture, from its three lines: "P6", "width height", "255". None at the end."""
    magic, size, depth = (pictures.readline(64) for _ in range(3))
    numbers = size.split()
    if magic != b"P6\n" or len(numbers) != 2 or not all(map(bytes.isdigit, numbers)) or depth != b"255\n":
        return None
    return int(numbers[0]), int(numbers[1])


@contextmanager
def _decoding(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Run ffmpeg and give (pictures, log). ffmpeg has ended when the block ends."""
    command = [ffmpeg_program(), "-hide_banner", *_INPUT, "-i", f"file:{path}", *_OUTPUT]
    with tempfile.TemporaryFile() as log:
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log
        ) as ffmpeg:
            assert ffmpeg.stdout is not None  # it is a pipe
            _limit(ffmpeg.pid)
            end = threading.Timer(WALL_SECONDS, ffmpeg.kill)
            end.daemon = True
            end.start()
            try:
                yield ffmpeg.stdout, log
            finally:
                end.cancel()
                ffmpeg.kill()


def _limit(process: int) -> None:
    """Limit the memory and time of another process. Only Linux can do this."""
    try:
        from resource import RLIMIT_AS, RLIMIT_CORE, RLIMIT_CPU, RLIMIT_FSIZE, prlimit
    except ImportError:
        return
    limits = {RLIMIT_AS: ADDRESS_SPACE, RLIMIT_CPU: CPU_SECONDS, RLIMIT_FSIZE: LARGEST_LOG, RLIMIT_CORE: 0}
    for kind, most in limits.items():
        with suppress(OSError, ValueError):  # it has already ended, or its limit is lower
            prlimit(process, kind, (most, most))
