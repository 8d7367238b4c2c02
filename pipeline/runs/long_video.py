"""A long video: a first segment, and segments that each continue the one before from its last frames.

As LongCat-Video's demos make them (arXiv 2510.22200, 4.2): every segment has the same size and number of frames, and
begins with the last decoded frames of the segment before. One prompt for all makes a long take; a prompt for each lets
the story change on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.request.start import FromClip, FromFrames
from pipeline.request.video import VideoRequest

COND_FRAMES = 13
MOST_SEGMENTS = 999


@dataclass(frozen=True)
class LongVideo:
    """The plan of a long video.

    Attributes:
        request: of the first segment; it may begin with an image or continue a clip.
        prompts: one for each segment.
        cond_frames, kv_cache, enhance_hf: of the segments after the first, as in `FromFrames`.

    Raises:
        ValueError: a segment cannot be made so; the sentence names the first such segment.
    """

    request: VideoRequest
    prompts: tuple[str, ...]
    cond_frames: int = COND_FRAMES
    kv_cache: str = "device"
    enhance_hf: bool = True

    name = "segment"  # of its files

    def __post_init__(self) -> None:
        if not 1 <= len(self.prompts) <= MOST_SEGMENTS:
            raise ValueError(f"a long video of {len(self.prompts)} segments cannot be made; use 1 to {MOST_SEGMENTS}")
        if isinstance(self.request.start, FromClip):
            raise ValueError("a long video begins with a video that is made, not refined; refine it afterwards")
        for number in range(len(self.prompts)):
            try:
                self.segment(number, Path("end.mp4"))
            except ValueError as error:
                raise ValueError(f"segment {number + 1} of {len(self.prompts)} cannot be made: {error}") from None

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def carried(self) -> int:
        """Number of frames at the end of a segment that the next one begins with."""
        return self.cond_frames

    @property
    def frames(self) -> int:
        """Number of frames of the whole."""
        return self.request.num_frames + (len(self) - 1) * (self.request.num_frames - self.cond_frames)

    def overlap(self, number: int) -> int:
        """Number of frames at the beginning of a segment that the segment before it has already."""
        return self.cond_frames if number else 0

    def segment(self, number: int, before: Path) -> VideoRequest:
        """The request of a segment, counted from 0. before: an MP4 file that ends as the segment before it does.

        Each segment draws its noise from a seed of its own, the first one's plus its number.
        """
        request = replace(self.request, prompt=self.prompts[number], seed=(self.request.seed + number) % 2**63)
        if not number:
            return request
        start = FromFrames(
            video=str(before), cond_frames=self.cond_frames, kv_cache=self.kv_cache, enhance_hf=self.enhance_hf
        )
        return replace(request, start=start)

    def prepared(self, number: int, before: Path) -> AbstractContextManager[VideoRequest]:
        """As `segment`, which reads nothing else."""
        return nullcontext(self.segment(number, before))


def prompts_for(prompts: Sequence[str], segments: int | None) -> tuple[str, ...]:
    """One prompt for each segment: those given, and the last of them for all that remain.

    segments: how many; None for as many as there are prompts.

    Raises:
        ValueError: there are more prompts than segments, or only one prompt and no number of segments.
    """
    if segments is None:
        if len(prompts) == 1:
            raise ValueError("a long video of one prompt needs the number of segments; add --segments, such as 4")
        segments = len(prompts)
    if len(prompts) > segments:
        raise ValueError(f"there are {len(prompts)} prompts for {segments} segments; leave some out, or add segments")
    return (*prompts, *[prompts[-1]] * (segments - len(prompts)))
