"""Writes videos: H.264 in an MP4 that plays in every browser and carries its settings."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path

import numpy as np

from pipeline.machine.paths import check_writable, expand_user, temporary_folder

CONSTANT_QUALITY = 18  # x264's crf: visually lossless, small files


def prepare_output(output: Path | str | None) -> Path:
    """Check the file to write to before the work starts, so that hours do not end in "permission denied".

    output: the path, or None for a new temporary one. Returns the path; leaves nothing behind.

    Raises:
        ValueError: the path cannot be written or does not end in .mp4.
        RuntimeError: ffmpeg is missing.
    """
    ffmpeg_program()
    if output is None:
        return temporary_folder() / "video.mp4"
    output = expand_user(output)
    if output.name in ("", ".."):
        raise ValueError(f"the output {str(output)!r} names no file; use a name such as video.mp4")
    if output.suffix.lower() != ".mp4":
        raise ValueError(f"the output {output} does not end in .mp4; use a name such as {_suggested_name(output)}")
    check_writable(Path(os.path.realpath(output)))
    return output


def _suggested_name(output: Path) -> str:
    return "video.mp4" if output.name.startswith(".") else output.with_suffix(".mp4").name


def ffmpeg_program() -> str:
    """Path of ffmpeg: the program that IMAGEIO_FFMPEG_EXE names, or the one that imageio_ffmpeg ships."""
    import imageio_ffmpeg  # imported late: a machine that only measures the GPU has no ffmpeg

    program = imageio_ffmpeg.get_ffmpeg_exe()
    if shutil.which(program) is None:
        raise RuntimeError(f"there is no ffmpeg at {program}; run `make install`, or unset IMAGEIO_FFMPEG_EXE")
    return program


def write_video(output: Path, frames: np.ndarray, fps: int, description: dict) -> None:
    """Write uint8 frames [T, H, W, 3] as H.264, yuv420p, with the index in front (faststart).

    `description` goes into the file's comment as JSON. The file appears complete or not at all.

    Raises:
        OSError: the file could not be written. The message gives the reason and the path of the rescued video.
    """
    try:
        _encode(output, frames, fps, description)
    except OSError as error:
        # a video that took hours must not be lost because the disk filled up meanwhile
        raise OSError(f"cannot write {output}: {error}; {_rescue(output, frames, fps, description)}") from error


def _rescue(output: Path, frames: np.ndarray, fps: int, description: dict) -> str:
    folder = temporary_folder()
    try:
        _encode(folder / output.name, frames, fps, description)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        return f"{folder.parent} cannot take it either; free some space, or choose another place"
    return f"the video was kept as {folder / output.name}"


def _encode(output: Path, frames: np.ndarray, fps: int, description: dict) -> None:
    height, width = frames.shape[1:3]
    output = Path(os.path.realpath(output))  # a link stays, and what it points to is replaced
    output.parent.mkdir(parents=True, exist_ok=True)
    # a unique name, because another process may write the same output
    partial = output.with_name(f".{uuid.uuid4().hex[:8]}.partial.mp4")
    comment = json.dumps(description, ensure_ascii=False, separators=(",", ":"))
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps}", "-i", "-"]
    codec = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", f"{CONSTANT_QUALITY}", "-movflags", "+faststart"]
    # imageio_ffmpeg's own writer ignores the exit code, so a full disk would leave a broken file and no error.
    command: list[str | bytes] = [ffmpeg_program(), "-v", "error", "-y", *source, *codec]
    # UTF-8 in every locale; "file:", because ffmpeg would read the part before a colon as a protocol
    command += ["-metadata", f"comment={comment}".encode(), b"file:" + os.fsencode(partial)]
    try:
        with tempfile.TemporaryFile(dir=output.parent) as log:
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log) as ffmpeg:
                assert ffmpeg.stdin is not None  # a pipe
                try:
                    for frame in frames:
                        ffmpeg.stdin.write(np.ascontiguousarray(frame).data)
                except BrokenPipeError:
                    pass  # ffmpeg ended early; its log has the reason
                except BaseException:
                    ffmpeg.kill()
                    raise
                finally:
                    with contextlib.suppress(BrokenPipeError):
                        ffmpeg.stdin.close()
            if ffmpeg.returncode:
                log.seek(0)
                raise OSError(_reason(log.read().decode(errors="replace"), ffmpeg.returncode, partial))
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)


def _reason(log: str, code: int, file: Path) -> str:
    free = shutil.disk_usage(file.parent).free
    if "No space left" in log or free < 2**20:  # even the log may not have fitted
        return f"no space left on the disk ({free / 2**20:.1f} MiB free)"
    return " ".join(log.replace(str(file), "the file").split())[-200:] or f"ffmpeg ended with code {code}"
