"""Refines a long video in the pieces that it was made in: each begins with the refined end of the one before.

As LongCat-Video's demos do: a window reaches over one segment and the end of the one before it, and the frames that two
windows share are taken from the earlier one. With the segments' length of 93 frames and 13 that they share, these are
windows of 93 frames that are 80 apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.media.clip import read_clip
from pipeline.media.write import write_video
from pipeline.request.start import FromClip
from pipeline.request.video import VideoRequest
from pipeline.runs.chain import ChainStore
from pipeline.runs.long_video import LongVideo


@dataclass(frozen=True)
class LongRefinement:
    """The plan of refining a long video, whose segments are finished when it is carried out.

    Attributes:
        video: the long video. segments: where its segments are.
        request: that refines the first segment.

    Raises:
        ValueError: a window cannot be refined so.
    """

    video: LongVideo
    segments: ChainStore
    request: VideoRequest

    name = "window"  # of its files

    def __post_init__(self) -> None:
        for number in range(min(2, len(self))):
            self.segment(number, self.segments.folder / "end.mp4")

    def __len__(self) -> int:
        return len(self.video)

    @property
    def carried(self) -> int:
        return self._start.factor * self.video.carried

    @property
    def _start(self) -> FromClip:
        start = self.request.start
        if not isinstance(start, FromClip):
            raise ValueError(f"the request begins {type(start).__name__}; pass one that refines a clip")
        return start

    def overlap(self, number: int) -> int:
        return self._start.factor * self.video.overlap(number)

    def segment(self, number: int, before: Path) -> VideoRequest:
        """The request of a window, counted from 0. before: an MP4 file that ends as the refined one before it does."""
        given = self.overlap(number)
        video, refined = str(self._source(number)), str(before) if given else None
        start = replace(self._start, video=video, refined=refined, cond_frames=given)
        prompt, seed = self.video.prompts[number], (self.request.seed + number) % 2**63
        return replace(self.request, prompt=prompt, seed=seed, start=start)

    def described(self) -> dict[str, Any]:
        """The request of the first window says all that is known."""
        return {}

    def _source(self, number: int) -> Path:
        """The file with the frames of a window before they are refined."""
        return self.segments.folder / f"{self.name}-{number + 1:03}.source.mp4"

    @contextmanager
    def prepared(self, number: int, before: Path) -> Iterator[VideoRequest]:
        """The same, in a block in which the file with the window's frames is there."""
        request = self.segment(number, before)
        frames = read_clip(self.segments.video(number))
        if number:
            frames = np.concatenate([read_clip(self.segments.end(number - 1))[-self.video.carried :], frames])
        source = self._source(number)
        try:
            write_video(source, frames, self.video.request.fps, {}, lossless=True)
            del frames
            yield request
        finally:
            source.unlink(missing_ok=True)
