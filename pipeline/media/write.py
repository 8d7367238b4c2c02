"""Writes videos: H.264 in an MP4 that plays in every browser and carries its settings."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np

from pipeline.machine.paths import check_writable, expand_user, temporary_folder
from pipeline.machine.whole_files import replacing

Buffer: TypeAlias = bytes | memoryview

CONSTANT_QUALITY = 18  # x264's crf: visually lossless, small files
PROBE_SECONDS = 60.0  # for ffmpeg to show that it has the encoder, which takes a tenth of one

# BT.709, limited range, and saying so: of a file that does not say, browsers guess the colours by its height.
_COLOURS = (
    "scale=out_color_matrix=bt709:out_range=tv,"
    "setparams=range=tv:color_primaries=bt709:color_trc=bt709:colorspace=bt709"
)
_CODEC = ["-vf", _COLOURS, "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", f"{CONSTANT_QUALITY}"]
_LOSSLESS = ["-c:v", "libx264rgb", "-pix_fmt", "rgb24", "-qp", "0", "-preset", "veryfast"]


def prepare_output(output: Path | str | None) -> Path:
    """Check the file to write to before the work starts, so that hours do not end in "permission denied".

    output: the path, or None for a new temporary one. Returns the path; leaves nothing behind.

    Raises:
        ValueError: the path cannot be written or does not end in .mp4, or there is no ffmpeg that can write it.
    """
    check_encoder()
    if output is None:
        return temporary_folder() / "video.mp4"
    output = expand_user(output)
    if output.name in ("", ".."):
        raise ValueError(f"the output {str(output)!r} names no file; use a name such as video.mp4")
    if output.suffix.lower() != ".mp4":
        raise ValueError(f"the output {output} does not end in .mp4; use a name such as {_suggested_name(output)}")
    try:
        real = Path(os.path.realpath(output))  # a link is written through
    except UnicodeError:
        real = output  # `check_writable` has the sentence for it
    check_writable(real)
    return output


def _suggested_name(output: Path) -> str:
    return "video.mp4" if output.name.startswith(".") else output.with_suffix(".mp4").name


def ffmpeg_program() -> str:
    """The ffmpeg of imageio_ffmpeg, or the one that IMAGEIO_FFMPEG_EXE names. Raises ValueError if there is none."""
    import imageio_ffmpeg  # not everywhere: a machine that only measures the GPU has no ffmpeg

    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError:
        raise ValueError("there is no ffmpeg; run `make install`") from None
    if shutil.which(program) is None:
        raise ValueError(f"there is no ffmpeg at {program}; run `make install`, or unset IMAGEIO_FFMPEG_EXE")
    return program


def check_encoder() -> None:
    """ValueError where videos cannot be written for want of an ffmpeg, or of its encoder."""
    _try_encoder(ffmpeg_program())


@lru_cache(maxsize=8)  # of those that have it
def _try_encoder(program: str) -> None:
    command = [program, "-v", "error", *_source(16, 16, 1), *_CODEC, "-f", "null", "-"]
    try:
        done = subprocess.run(command, input=bytes(3 * 16 * 16), capture_output=True, timeout=PROBE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    else:
        if not done.returncode:
            return
        reason = done.stderr.decode(errors="replace") or f"it ended with code {done.returncode}"
    raise ValueError(
        f"the ffmpeg at {program} cannot make H.264 videos with libx264 ({' '.join(reason.split())[:200]}); run "
        "`make install` for one that can, and unset IMAGEIO_FFMPEG_EXE"
    )


def write_video(output: Path, frames: np.ndarray, fps: int, description: dict, *, lossless: bool = False) -> None:
    """Write uint8 frames [T, H, W, 3] as H.264, yuv420p, with the index in front (faststart).

    `description` goes into the file's comment as JSON. The file appears complete or not at all.
    lossless: in RGB, bit for bit, for frames that are read again; browsers do not play it.

    Raises:
        OSError: it could not be written; the message says why, and where the video or its frames were put instead.
    """
    try:
        _encode(output, frames, fps, description, _LOSSLESS if lossless else _CODEC)
    except OSError as error:
        # a video that took hours must not be lost because the disk filled up meanwhile
        raise OSError(f"cannot write {output}: {error}; {_rescue(output, frames, fps, description)}") from error


def _rescue(output: Path, frames: np.ndarray, fps: int, description: dict) -> str:
    folder = temporary_folder()
    try:
        try:
            _encode(folder / output.name, frames, fps, description, _CODEC)
        except OSError:
            _write_pictures(folder, frames)  # perhaps it is not the place, but the encoder
            return f"its frames, {fps} per second, were kept as PNG files in {folder}"
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        return f"{folder.parent} cannot take it either ({error.strerror}); free some space, or choose another place"
    return f"the video was kept as {folder / output.name}"


def _write_pictures(folder: Path, frames: np.ndarray) -> None:
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number:05}.png", compress_level=1)


def _encode(output: Path, frames: np.ndarray, fps: int, description: dict, codec: list[str]) -> None:
    height, width = frames.shape[1:3]
    pieces = (np.ascontiguousarray(frame).data for frame in frames)
    run_ffmpeg(output, [*_source(width, height, fps), *codec], pieces, description)


def run_ffmpeg(output: Path, arguments: list[str], pieces: Iterable[Buffer], description: dict) -> None:
    """Let ffmpeg make an MP4 of what it reads from its standard input, with the description as its comment.

    arguments: its inputs and codec. pieces: what it reads. The file appears complete or not at all.

    Raises:
        OSError: it could not be written; the message says why.
    """
    output = Path(os.path.realpath(output))  # a link stays, and what it points to is replaced
    output.parent.mkdir(parents=True, exist_ok=True)
    comment = json.dumps(description, ensure_ascii=False, separators=(",", ":"))
    # imageio_ffmpeg's own writer does not look at the exit code, so a full disk would leave a broken file and no error.
    command: list[str | bytes] = [ffmpeg_program(), "-v", "error", "-y", *arguments]
    command += ["-movflags", "+faststart", "-metadata", f"comment={comment}".encode()]  # UTF-8 whatever the locale
    with replacing(output) as partial, tempfile.TemporaryFile(dir=output.parent) as log:
        # "file:", because a colon in a relative path would make its beginning a protocol
        command.append(b"file:" + os.fsencode(partial))
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log) as ffmpeg:
            assert ffmpeg.stdin is not None  # a pipe
            try:
                for piece in pieces:
                    ffmpeg.stdin.write(piece)
            except BrokenPipeError:
                pass  # it ended early, and its log says why
            except BaseException:
                ffmpeg.kill()
                raise
            finally:
                with contextlib.suppress(BrokenPipeError):
                    ffmpeg.stdin.close()
        if ffmpeg.returncode:
            log.seek(0)
            raise OSError(_reason(log.read().decode(errors="replace"), ffmpeg.returncode, partial))


def _source(width: int, height: int, fps: int) -> list[str]:
    """Pixels from the standard input."""
    return ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps}", "-i", "-"]


def _reason(log: str, code: int, file: Path) -> str:
    free = shutil.disk_usage(file.parent).free
    if "No space left" in log or free < 2**20:  # even the log may not have fitted
        return f"no space left on the disk ({free / 2**20:.1f} MiB free)"
    return " ".join(log.replace(str(file), "the file").split())[-200:] or f"ffmpeg ended with code {code}"
