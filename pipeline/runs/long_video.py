"""A long video: a first segment, and segments that each continue the one before from its last frames.

As LongCat-Video's demos make them (arXiv 2510.22200, 4.2): every segment has the same size and number of frames, and
begins with the last decoded frames of the segment before. One prompt for all makes a long take; a prompt for each lets
the story change on the way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.request.start import FromClip, FromFrames
from pipeline.request.values import whole_number
from pipeline.request.video import VideoRequest

COND_FRAMES = 13
MOST_SEGMENTS = 999


@dataclass(frozen=True)
class LongVideo:
    """The plan of a long video.

    Attributes:
        request: of the first segment, with its prompt; it may begin with an image or continue a clip.
        prompts: one for each segment.
        cond_frames, kv_cache, enhance_hf: of the segments after the first, as in `FromFrames`.
        seeds: one for each segment; by default they count up from the request's. Segments that are made again with
            other noise need seeds of their own.

    Raises:
        ValueError: a segment cannot be made so; the sentence names the first such segment.
    """

    request: VideoRequest
    prompts: tuple[str, ...]
    cond_frames: int = COND_FRAMES
    kv_cache: str = "device"
    enhance_hf: bool = True
    seeds: tuple[int, ...] = ()

    name = "segment"  # of its files

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", tuple(whole_number("seed", seed) for seed in self.seeds))
        _check_count(len(self.prompts))
        if isinstance(self.request.start, FromClip):
            raise ValueError("a long video begins with a video that is made, not refined; refine it afterwards")
        object.__setattr__(self, "cond_frames", self._start("end.mp4").cond_frames)  # which checks all three
        counted = tuple(self._counted(number) for number in range(len(self)))
        if self.seeds == counted:  # equal videos are equal plans
            object.__setattr__(self, "seeds", ())
        if len(self.seeds) not in (0, len(self)):
            raise ValueError(f"there are {len(self.seeds)} seeds for {len(self)} segments; give one for each, or none")
        for number in range(len(self.prompts)):
            try:
                self.segment(number, Path("end.mp4"))
            except ValueError as error:
                raise ValueError(f"segment {number + 1} of {len(self.prompts)} cannot be made: {error}") from None
        object.__setattr__(self, "request", replace(self.request, prompt=self.prompts[0]))

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def carried(self) -> int:
        """Number of frames at the end of a segment that the next one begins with."""
        return self.cond_frames

    @property
    def frames(self) -> int:
        """Number of frames of the whole."""
        return self.frames_of(len(self))

    def frames_of(self, count: int) -> int:
        """Number of frames of the first `count` segments together."""
        return count and self.request.num_frames + (count - 1) * (self.request.num_frames - self.cond_frames)

    @property
    def as_one(self) -> VideoRequest:
        """The request of one video of all these frames, which says what the whole is; nobody makes it so."""
        return replace(self.request, prompt=self.prompts[0], seed=self.seed(0), num_frames=self.frames)

    def seed(self, number: int) -> int:
        """The seed of a segment, counted from 0."""
        return self.seeds[number] if self.seeds else self._counted(number)

    def _counted(self, number: int) -> int:
        return (self.request.seed + number) % 2**63

    @property
    def dense(self) -> LongVideo:
        """The same with dense attention."""
        return replace(self, request=self.request.dense)

    def described(self) -> dict[str, Any]:
        """The settings of the whole in the joined video, beside the request of its first segment."""
        return {"long": self._more()}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; `from_dict` reads them back."""
        return {"request": self.request.to_dict(), **self._more()}

    def _more(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in ("cond_frames", "kv_cache", "enhance_hf")}
        return {"prompts": list(self.prompts), **values, "seeds": list(self.seeds)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LongVideo:
        """Read what `to_dict` wrote. Raises ValueError for what is no such plan."""
        given = dict(values)
        try:
            request = VideoRequest.from_dict(given.pop("request"))
            given |= {name: tuple(given.get(name) or ()) for name in ("prompts", "seeds")}
            return cls(request, **given)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"the plan of the long video is damaged ({error}); set it up again") from None

    def overlap(self, number: int) -> int:
        """Number of frames at the beginning of a segment that the segment before it has already."""
        return self.cond_frames if number else 0

    def segment(self, number: int, before: Path) -> VideoRequest:
        """The request of a segment, counted from 0. before: an MP4 file that ends as the segment before it does.

        Each segment draws its noise from a seed of its own.
        """
        request = replace(self.request, prompt=self.prompts[number], seed=self.seed(number))
        if not number:
            return request
        return replace(request, start=self._start(str(before)))

    def _start(self, before: str) -> FromFrames:
        return FromFrames(
            video=before, cond_frames=self.cond_frames, kv_cache=self.kv_cache, enhance_hf=self.enhance_hf
        )

    def prepared(self, number: int, before: Path) -> AbstractContextManager[VideoRequest]:
        """As `segment`, which reads nothing else."""
        return nullcontext(self.segment(number, before))


def prompts_for(prompts: Sequence[str], segments: int | None) -> tuple[str, ...]:
    """One prompt for each segment: those given, and the last of them for all that remain.

    segments: how many; None for as many as there are prompts.

    Raises:
        ValueError: there are more prompts than segments, only one prompt and no number of segments, or more segments
            than a long video may have.
    """
    if segments is None:
        if len(prompts) == 1:
            raise ValueError("a long video of one prompt needs the number of segments; add --segments, such as 4")
        segments = len(prompts)
    if len(prompts) > segments:
        raise ValueError(f"there are {len(prompts)} prompts for {segments} segments; leave some out, or add segments")
    _check_count(segments)  # before so many are written out, which a call or a form may ask for
    return (*prompts, *[prompts[-1]] * (segments - len(prompts)))


def _check_count(segments: int) -> None:
    """Raise ValueError unless a long video can have so many segments."""
    if not 1 <= segments <= MOST_SEGMENTS:
        raise ValueError(f"a long video of {segments} segments cannot be made; use 1 to {MOST_SEGMENTS}")
