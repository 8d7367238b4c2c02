"""The start of a video: noise alone, or a clip that is refined.

Each kind owns what differs between them: latent frames, steps that run, what it asks of a request, how it is written
down. `pipeline.model.begin` makes the first latents. A new task is a new kind here and a function there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pipeline.request import refinement
from pipeline.request.values import read_adapters, whole

LATENT_FRAMES = 4  # frames of one latent after the first, which holds one (the Wan VAE)


class Asked(Protocol):
    """The values of a request that a start has something to say about."""

    @property
    def num_frames(self) -> int: ...
    @property
    def guidance_scale(self) -> float: ...
    @property
    def use_distill(self) -> bool: ...
    @property
    def lora(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class FromNoise:
    """Text to video: everything is drawn from the request's seed."""

    clip: ClassVar[None] = None  # the file that has to be encoded first

    def check(self, asked: Asked) -> None:
        """ValueError for a request that cannot begin so."""
        frames = whole("num_frames", asked.num_frames)
        if frames < 1:
            raise ValueError(f"num_frames {frames} is too small; use 1, 5, 9, ... (4n + 1)")
        if frames % LATENT_FRAMES != 1:
            below = (frames - 1) // LATENT_FRAMES * LATENT_FRAMES + 1
            raise ValueError(f"num_frames {frames} is not of the form 4n + 1; try {below} or {below + LATENT_FRAMES}")
        if any(adapter.name == "refine" for adapter in read_adapters(asked.lora)):
            raise ValueError("the adapter 'refine' is for refining a clip; choose a clip, or another adapter")

    def latent_frames(self, num_frames: int) -> int:
        return 1 + (num_frames - 1) // LATENT_FRAMES

    def steps_run(self, steps: int, shift: float) -> int:
        """Denoising steps that run of a schedule of `steps`. shift: of the checkpoint's scheduler."""
        return steps

    def to_dict(self) -> dict[str, Any]:
        """The keys of a request's plain values that say how it begins."""
        return {"refine": None}


@dataclass(frozen=True, kw_only=True, slots=True)
class FromClip:
    """Refinement: the clip is enlarged, encoded and noised, and denoised again from there.

    LongCat-Video makes 720p clips from 480p ones so, with an adapter trained for it (arXiv 2510.22200, 4.3).

    Attributes:
        video: path of an MP4 file.
        t_thresh: noise level to start from, above 0 to 1; 0.5 replaces half of the clip by noise, 1 all of it.
        double_frames: twice as many frames as well, interpolated before they are refined.

    Raises:
        ValueError: a value cannot be used.
    """

    video: str
    t_thresh: float = 0.5
    double_frames: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.video, str) or not self.video or "\0" in self.video:
            raise ValueError(f"the clip to refine is {self.video!r}; pass the path of an MP4 file")
        level = self.t_thresh
        if isinstance(level, bool) or not isinstance(level, int | float) or not 0 < level <= 1:
            raise ValueError(f"t_thresh {level!r} is not a noise level above 0 to 1; LongCat refines from 0.5")
        object.__setattr__(self, "t_thresh", float(level))
        if not isinstance(self.double_frames, bool):
            raise ValueError(f"double_frames {self.double_frames!r} is not true or false; pass one of them")

    @property
    def clip(self) -> Path:
        return Path(self.video)

    @property
    def factor(self) -> int:
        """Frames of the video for each of the clip."""
        return 2 if self.double_frames else 1

    def check(self, asked: Asked) -> None:
        """ValueError for a request that cannot begin so."""
        frames = whole("num_frames", asked.num_frames)
        if frames < 1 or frames % self.factor:
            raise ValueError(
                f"num_frames {frames} is not what a refinement makes; use the clip's number of frames, or "
                "twice that with double_frames"
            )
        if asked.guidance_scale != 1:
            raise ValueError(
                f"guidance_scale {asked.guidance_scale} has no effect: LongCat refines without guidance; use 1"
            )
        if asked.use_distill is True:
            raise ValueError("a refinement runs LongCat's regular schedule; turn the few-step schedule off")
        if asked.lora is None:
            raise ValueError(
                "a refinement needs the LoRA adapter trained for it, without which the clip only gets larger, not "
                "sharper; use lora 'refine'"
            )

    def latent_frames(self, num_frames: int) -> int:
        return refinement.latent_frames(num_frames)

    def steps_run(self, steps: int, shift: float) -> int:
        return refinement.steps_run(steps, self.t_thresh, shift)

    def at(self, place: Path | str) -> FromClip:
        """The same with the clip in another place."""
        return replace(self, video=str(place))

    def to_dict(self) -> dict[str, Any]:
        return {"refine": asdict(self)}


Start = FromNoise | FromClip
STARTS: tuple[type, ...] = (FromNoise, FromClip)
KEYS = ("refine",)  # of plain values, which `read_start` takes


def read_start(values: Mapping[str, Any]) -> Start:
    """Read the start that `to_dict` wrote into a request's plain values; noise if there is none.

    Raises ValueError for a name that is unknown or missing, or a value that cannot be used.
    """
    clip = values.get("refine")
    if clip is None:
        return FromNoise()
    if not isinstance(clip, Mapping):
        raise ValueError(f"refine is a {type(clip).__name__}; pass the clip with its noise level, or null")
    try:
        return FromClip(**clip)
    except TypeError as error:
        raise ValueError(f"the refinement is incomplete: {str(error).partition('() ')[2]}") from None
