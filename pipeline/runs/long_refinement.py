"""Refines a long video in the pieces that it was made in: each begins with the refined end of the one before.

As LongCat-Video's demos do: a window reaches over one segment and the end of the one before it, and the frames that two
windows share are taken from the earlier one. With the segments' length of 93 frames and 13 that they share, these are
windows of 93 frames that are 80 apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
        prompts: one for each window; by default those of the segments.

    Raises:
        ValueError: a window cannot be refined so.
    """

    video: LongVideo
    segments: ChainStore
    request: VideoRequest
    prompts: tuple[str, ...] = ()

    name = "window"  # of its files

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", tuple(self.prompts or self.video.prompts))
        if len(self.prompts) != len(self):
            raise ValueError(f"there are {len(self.prompts)} prompts for {len(self)} windows; give one for each")
        wanted = self.start.factor * self.video.request.num_frames
        if self.request.num_frames != wanted:
            raise ValueError(
                f"num_frames {self.request.num_frames} is not what a window of this long video makes; use {wanted}"
            )
        for number in range(min(2, len(self))):
            self.segment(number, self.segments.folder / "end.mp4")

    def __len__(self) -> int:
        return len(self.video)

    @property
    def carried(self) -> int:
        return self.start.factor * self.video.carried

    def frames_of(self, count: int) -> int:
        """Number of frames of the first `count` windows together."""
        return self.start.factor * self.video.frames_of(count)

    @property
    def as_one(self) -> VideoRequest:
        """The request of one refinement of the whole, which says what that is; nobody makes it so."""
        return replace(self.request, prompt=self.prompts[0], num_frames=self.frames_of(len(self)))

    @property
    def dense(self) -> LongRefinement:
        """The same with dense attention."""
        return replace(self, request=self.request.dense)

    def seed(self, number: int) -> int:
        """The seed of a window, counted from 0."""
        return (self.request.seed + number) % 2**63

    @property
    def start(self) -> FromClip:
        """How the first window begins; its clip may be the whole."""
        start = self.request.start
        if not isinstance(start, FromClip):
            raise ValueError(f"the request begins {type(start).__name__}; pass one that refines a clip")
        return start

    def overlap(self, number: int) -> int:
        return self.start.factor * self.video.overlap(number)

    def segment(self, number: int, before: Path) -> VideoRequest:
        """The request of a window, counted from 0. before: an MP4 file that ends as the refined one before it does."""
        given = self.overlap(number)
        video, refined = str(self._source(number)), str(before) if given else None
        start = replace(self.start, video=video, refined=refined, cond_frames=given)
        return replace(self.request, prompt=self.prompts[number], seed=self.seed(number), start=start)

    def described(self) -> dict[str, Any]:
        """The request of the first window says the rest; the long video is not to be told by it."""
        return {"windows": len(self)}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON, without the folder of the segments; `from_dict` reads them back."""
        return {"video": self.video.to_dict(), "request": self.request.to_dict(), "prompts": list(self.prompts)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], folder: Path, checkpoint: str) -> LongRefinement:
        """Read what `to_dict` wrote.

        folder: where the segments are. checkpoint: name of the one that made them.
        Raises ValueError for what is no such plan, and as `ChainStore` does.
        """
        try:
            video, request = LongVideo.from_dict(values["video"]), VideoRequest.from_dict(values["request"])
            return cls(video, ChainStore(folder, video, checkpoint), request, tuple(values["prompts"]))
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"the plan of the refinement is damaged ({error}); set it up again") from None

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
