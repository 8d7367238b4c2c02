"""Joins MP4 files end to end. Nothing is encoded again, so no frame changes, and it takes seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.media.write import run_ffmpeg


def join_videos(parts: Sequence[Path], output: Path, description: dict) -> None:
    """Write one video that plays the parts one after the other, without a gap, and carries the description.

    parts: written by `write_video` in one size and rate, of three frames or more each: with fewer, x264 leaves out the
        delay by which the time stamps of the next part fit on. Their names hold no line break.
    The file appears complete or not at all.

    Raises:
        OSError: it could not be written, or a part could not be read; the message says why.
    """
    listing = "".join(f"file {_quoted(part.absolute())}\n" for part in parts)
    # -xerror: otherwise a part that cannot be read ends the video early, and nothing says so
    source = ["-xerror", "-f", "concat", "-safe", "0", "-protocol_whitelist", "fd,file,pipe", "-i", "-"]
    try:
        run_ffmpeg(output, [*source, "-c", "copy"], [listing.encode(errors="surrogateescape")], description)
    except OSError as error:
        raise OSError(f"cannot write {output}: {error}") from error


def _quoted(path: Path) -> str:
    """As ffmpeg's lists have it: everything between quotes stands for itself, and a quote stands outside of them."""
    return "'file:" + str(path).replace("'", "'\\''") + "'"
