"""Reads the settings that every MP4 of this project carries in its comment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.machine.paths import open_regular
from pipeline.request.start import FromNoise
from pipeline.request.video import VideoRequest

MAX_COMMENT = 2**20  # bytes; a request with the longest prompts is a tenth of that
MAX_BOXES = 10_000  # on one level; a hostile file could hold a hundred million
COMMENT = (b"moov", b"udta", b"meta", b"ilst", b"\xa9cmt", b"data")


@dataclass(frozen=True)
class VideoSettings:
    """The settings that made a video.

    Attributes:
        versions: version numbers of the packages, and the name of the device.
        checkpoint: name of the checkpoint; None for older files, which do not say.
        long: of a long video, whose first segment `request` is, what `LongVideo.from_dict` reads; None for others.
        windows: in so many a long video was refined, of which `request` is the first; 0 for others.
    """

    request: VideoRequest
    versions: dict[str, str]
    checkpoint: str | None = None
    long: dict[str, Any] | None = None
    windows: int = 0


def describe(request: VideoRequest, versions: dict[str, str], checkpoint: str) -> dict[str, Any]:
    """The settings to store in a video, for `read_settings`.

    The image or clip that it began with is stored by its name alone. Its folder is private and means nothing on another
    machine.
    """
    return {"request": without_places(request).to_dict(), "versions": versions, "checkpoint": checkpoint}


def read_settings(path: str | Path) -> VideoSettings:
    """Read the request, the versions and the checkpoint's name that `write_video` put into an MP4's comment.

    Only headers and the comment are read, however large the file is, and nothing in them is trusted.

    Raises:
        ValueError: the file is not an MP4, is damaged, was made by another program, or has unusable settings.
    """
    path = Path(path)
    try:
        with open_regular(path) as stream:
            comment = _comment(stream, path.name)
    except OSError as error:
        raise ValueError(f"cannot read {path.name}: {error.strerror}; check the file") from None
    foreign = f"{path.name} does not say how it was made; use a video from this program, as it was saved"
    if comment is None:
        raise ValueError(foreign)
    try:
        description = json.loads(comment)
    except (ValueError, RecursionError):
        raise ValueError(foreign) from None
    if not isinstance(description, dict) or not isinstance(description.get("request"), dict):
        raise ValueError(foreign)
    try:
        request = VideoRequest.from_dict(description["request"])
    except (ValueError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the settings in {path.name} cannot be used: {reason}") from None
    # a path from a file must not point to anything on this machine
    request = without_places(request)
    long, windows = description.get("long"), description.get("windows")
    return VideoSettings(
        request,
        _versions(description.get("versions")),
        _text(description.get("checkpoint")),
        {"request": request.to_dict(), **long} if isinstance(long, dict) else None,
        windows if type(windows) is int and 0 < windows < 1000 else 0,
    )


def without_places(request: VideoRequest) -> VideoRequest:
    """The same request with the names of the files that it begins with, but not their folders."""
    start = request.start
    if isinstance(start, FromNoise):
        return request
    return replace(request, start=start.at(_text(start.source.name) or "file"))


def _versions(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    return {name: text for name, text in ((name, _text(text)) for name, text in value.items()) if text is not None}


def _text(value: Any) -> str | None:
    """The value if it is text that can be encoded again, else None: JSON may hold half of a surrogate pair."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else None


def _comment(stream: BinaryIO, name: str) -> bytes | None:
    """The text of the box moov/udta/meta/ilst/(c)cmt/data (ISO 14496-12, and Apple's list of tags), or None."""
    size = os.fstat(stream.fileno()).st_size
    if stream.read(12)[4:8] != b"ftyp":
        raise ValueError(f"{name} is not an MP4 video; use one from this program, as it was saved")
    start, end = 0, size
    for kind in COMMENT:
        box = next((box for box in boxes(stream, start, end) if box[0] == kind), None)
        if box is None:
            return None
        _, begin, stop = box
        if stop > size:
            raise ValueError(f"{name} is cut off or damaged; copy or download it again")
        start, end = begin, stop
        if kind == b"meta":
            stream.seek(begin + 4)
            if stream.read(4) != b"hdlr":  # MP4, unlike QuickTime, has version and flags first
                start += 4
    start += 8  # kind of text and locale
    if end - start > MAX_COMMENT:
        return None
    stream.seek(start)
    return stream.read(max(0, end - start))


def boxes(stream: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (kind, start of the content, end) of the boxes between two offsets. A box may claim to end past `end`."""
    for _ in range(MAX_BOXES):
        if start + 8 > end:
            return
        stream.seek(start)
        header = stream.read(16)
        size, kind, content = int.from_bytes(header[:4], "big"), header[4:8], start + 8
        if size == 1:
            size, content = int.from_bytes(header[8:16], "big"), start + 16
        stop = end if size == 0 else start + size
        if len(header) < 8 or stop < content:
            return
        yield kind, content, stop
        start = stop
