"""Video files: H.264 in an MP4 that plays in every browser and says how it was made."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import imageio_ffmpeg
import numpy as np

CONSTANT_QUALITY = 18  # x264's crf: visually lossless, small files


def prepare_output(output: Path | str | None) -> Path:
    """The file to write to, with its folder made and probed, so that hours of work do not end in "permission denied".

    Raises:
        ValueError: the path cannot be written or does not end in .mp4.
    """
    if output is None:
        return Path(tempfile.mkdtemp(prefix="longcat-")) / "video.mp4"
    output = Path(output).expanduser()
    if output.suffix.lower() != ".mp4":
        name = output.with_suffix(".mp4").name
        raise ValueError(f"the output {output} does not end in .mp4; use a name such as {name}")
    if output.is_dir():
        raise ValueError(f"the output {output} is a folder; add a file name such as {output / 'video.mp4'}")
    check_writable(output)
    return output


def check_writable(file: Path) -> None:
    """Make the folder of `file` and try to write there. ValueError when the file could not be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise ValueError(
            f"cannot write to the folder {file.parent}: {error.strerror}; "
            "choose another output or change its permissions"
        ) from None
    if file.exists() and not os.access(file, os.W_OK):
        raise ValueError(f"cannot overwrite {file}: permission denied; choose another output")


def write_video(output: Path, frames: np.ndarray, fps: int, description: dict) -> None:
    """Write uint8 frames [T, H, W, 3] as H.264, yuv420p, with the index in front (faststart).

    `description` goes into the file's comment as JSON. The file appears complete or not at all.
    """
    height, width = frames.shape[1:3]
    partial = output.with_name(f".{output.stem}.partial.mp4")
    comment = json.dumps(description, ensure_ascii=False, separators=(",", ":"))
    writer = imageio_ffmpeg.write_frames(
        str(partial),
        (width, height),
        fps=fps,
        codec="libx264",
        pix_fmt_out="yuv420p",
        quality=None,
        macro_block_size=None,
        ffmpeg_log_level="error",
        output_params=["-crf", f"{CONSTANT_QUALITY}", "-movflags", "+faststart", "-metadata", f"comment={comment}"],
    )
    try:
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
        writer.close()
        os.replace(partial, output)
    finally:
        writer.close()
        partial.unlink(missing_ok=True)
