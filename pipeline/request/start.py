"""The start of a video: noise alone, an image, the end of a clip, or a clip that is refined.

Each kind owns its rules: latent frames and how many of them are given, the steps that run, the demands on a request,
and the form in settings and JSON. `pipeline.model.begin` makes the first latents. A new task is a new kind here and a
function there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, get_args

from pipeline.request import refinement
from pipeline.request.values import read_adapters, real_number, whole_number

LATENT_FRAMES = 4  # frames of one latent after the first, which holds one (the Wan VAE)
NATIVE_FPS = 15  # frames per second that LongCat was trained on

KvCache = Literal["device", "host", "off"]
KV_CACHES: tuple[str, ...] = get_args(KvCache)


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


class _Made:
    """The common part of the kinds that make frames: one latent for the first frame, and one for every four more."""

    __slots__ = ()

    @property
    def clip(self) -> Path | None:
        """The clip that is refined."""
        return None

    @property
    def source(self) -> Path | None:
        """The file that has to be encoded first."""
        return None

    @property
    def sources(self) -> tuple[Path, ...]:
        """All files that are read."""
        return () if self.source is None else (self.source,)

    @property
    def conditioning(self) -> int:
        """Latent frames at the beginning that are given."""
        return 0

    @property
    def cached(self) -> bool:
        """Whether they run once, before the first step, instead of in every step."""
        return False

    @property
    def kv_on_host(self) -> bool:
        """Whether what is kept of them then is in host memory."""
        return False

    @property
    def front(self) -> int:
        """Frames that are made before the first of the video, and left out of it."""
        return 0

    @property
    def least_frames(self) -> int:
        """Frames of the shortest video."""
        return 1

    def check(self, asked: Asked) -> None:
        """ValueError for a request that cannot begin so."""
        frames = whole_number("num_frames", asked.num_frames)
        least = self.least_frames
        if frames < least:
            examples = ", ".join(str(least + LATENT_FRAMES * n) for n in range(3))
            raise ValueError(f"num_frames {frames} is too small; use {examples}, ... (4n + 1)")
        if frames % LATENT_FRAMES != 1:
            below = (frames - 1) // LATENT_FRAMES * LATENT_FRAMES + 1
            raise ValueError(
                f"num_frames {frames} is not of the form 4n + 1; try {max(below, least)} or {below + LATENT_FRAMES}"
            )
        if any(adapter.name == "refine" for adapter in read_adapters(asked.lora)):
            raise ValueError("the adapter 'refine' is for refining a clip; choose a clip, or another adapter")

    def latent_frames(self, num_frames: int) -> int:
        return latents_of(num_frames)

    def encoded_frames(self, num_frames: int) -> int:
        """Frames that the VAE encodes first, for a video of `num_frames`."""
        return 0

    def steps_run(self, steps: int, shift: float) -> int:
        """Denoising steps that run of a schedule of `steps`. shift: of the checkpoint's scheduler."""
        return steps


def latents_of(frames: int) -> int:
    """Latent frames of so many frames, 4n + 1."""
    return 1 + (frames - 1) // LATENT_FRAMES


@dataclass(frozen=True, slots=True)
class FromNoise(_Made):
    """Text to video: everything is drawn from the request's seed."""

    def to_dict(self) -> dict[str, Any]:
        """The keys of a request's plain values that say how it begins."""
        return {"refine": None}


@dataclass(frozen=True, kw_only=True, slots=True)
class FromImage(_Made):
    """Image to video: the first frame is given, the others follow from it and the prompt.

    Attributes:
        image: path of a picture, such as a PNG or JPEG file; it is stretched to the video's size.

    Raises:
        ValueError: a value cannot be used.
    """

    image: str

    def __post_init__(self) -> None:
        _check_path("the image to begin with", self.image, "a PNG or JPEG file")

    @property
    def source(self) -> Path:
        return Path(self.image)

    @property
    def conditioning(self) -> int:
        return 1

    @property
    def least_frames(self) -> int:
        return 1 + LATENT_FRAMES

    def encoded_frames(self, num_frames: int) -> int:
        return 1

    def at(self, place: Path | str) -> FromImage:
        """The same with the image in another place."""
        return replace(self, image=str(place))

    def to_dict(self) -> dict[str, Any]:
        return {"from_image": asdict(self)}


@dataclass(frozen=True, kw_only=True, slots=True)
class FromFrames(_Made):
    """Continuation: the video begins with the last frames of a clip, and goes on from them.

    Attributes:
        video: path of an MP4 file; its frames are stretched to the video's size.
        cond_frames: number of frames that are given, 4n + 1; LongCat continues from 13.
        stride: every so many of the clip's frames is used, counted back from its last.
        kv_cache: where the keys and values of these frames are kept: on the "device", on the "host" to save device
            memory, or "off" to compute them in every step. Guidance is then fitted over these frames as well, as for an
            image; without guidance the video is the same up to rounding.
        enhance_hf: LongCat's schedule with ten even steps for the lower half of the noise, which draws finer details
            and takes the place of the last steps of the regular one.

    Raises:
        ValueError: a value cannot be used.
    """

    video: str
    cond_frames: int = 13
    stride: int = 1
    kv_cache: str = "device"
    enhance_hf: bool = True

    def __post_init__(self) -> None:
        _check_path("the clip to continue", self.video, "an MP4 file")
        for name in ("cond_frames", "stride"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name)))
        frames = self.cond_frames
        if frames < 1 or frames % LATENT_FRAMES != 1:
            below = max(0, frames - 1) // LATENT_FRAMES * LATENT_FRAMES + 1
            near = f"try {below} or {below + LATENT_FRAMES}"
            raise ValueError(f"cond_frames {frames} is not of the form 4n + 1; {near}, LongCat uses 13")
        if not 1 <= self.stride <= 120:
            raise ValueError(f"stride {self.stride} is outside 1 to 120; use 1 for every frame of the clip")
        if self.kv_cache not in KV_CACHES:
            raise ValueError(f"unknown kv_cache {self.kv_cache!r}; choose one of {', '.join(KV_CACHES)}")
        if not isinstance(self.enhance_hf, bool):
            raise ValueError(f"enhance_hf {self.enhance_hf!r} is not true or false; pass one of them")

    @property
    def source(self) -> Path:
        return Path(self.video)

    @property
    def conditioning(self) -> int:
        return latents_of(self.cond_frames)

    @property
    def cached(self) -> bool:
        return self.kv_cache != "off"

    @property
    def kv_on_host(self) -> bool:
        return self.kv_cache == "host"

    @property
    def least_frames(self) -> int:
        return self.cond_frames + LATENT_FRAMES

    @property
    def frames_needed(self) -> int:
        """Least number of frames of the clip."""
        return 1 + (self.cond_frames - 1) * self.stride

    def check(self, asked: Asked) -> None:
        _Made.check(self, asked)
        if self.enhance_hf and asked.use_distill is True:
            raise ValueError(
                "enhance_hf and the few-step schedule are two schedules; turn enhance_hf off, as LongCat does with its "
                "distilled model"
            )

    def encoded_frames(self, num_frames: int) -> int:
        return self.cond_frames

    def steps_run(self, steps: int, shift: float) -> int:
        return refinement.enhanced_steps(steps, shift) if self.enhance_hf else steps

    def at(self, place: Path | str) -> FromFrames:
        """The same with the clip in another place."""
        return replace(self, video=str(place))

    def to_dict(self) -> dict[str, Any]:
        return {"from_frames": asdict(self)}


@dataclass(frozen=True, kw_only=True, slots=True)
class FromClip:
    """Refinement: the clip is enlarged, encoded and noised, and denoised again from there.

    LongCat-Video makes 720p clips from 480p ones so, with an adapter trained for it (arXiv 2510.22200, 4.3).

    Attributes:
        video: path of an MP4 file.
        t_thresh: noise level to start from, above 0 to 1; 0.5 replaces half of the clip by noise, 1 all of it.
        double_frames: twice as many frames as well, interpolated before they are refined.
        refined: path of an MP4 file with frames of the result that are refined already, or None. The result begins with
            the last `cond_frames` of them, for long videos that are refined in overlapping pieces.
        cond_frames: how many; LongCat uses 26, or 13 where the number of frames stays.

    Raises:
        ValueError: a value cannot be used.
    """

    video: str
    t_thresh: float = 0.5
    double_frames: bool = True
    refined: str | None = None
    cond_frames: int = 0

    cached: ClassVar[bool] = False
    kv_on_host: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_path("the clip to refine", self.video, "an MP4 file")
        object.__setattr__(self, "t_thresh", real_number("t_thresh", self.t_thresh))
        if not 0 < self.t_thresh <= 1:
            raise ValueError(
                f"t_thresh {self.t_thresh} is not a noise level above 0 to 1; LongCat refines from 0.5"
            )
        if not isinstance(self.double_frames, bool):
            raise ValueError(f"double_frames {self.double_frames!r} is not true or false; pass one of them")
        object.__setattr__(self, "cond_frames", whole_number("cond_frames", self.cond_frames))
        if self.refined is not None:
            _check_path("the clip with refined frames", self.refined, "an MP4 file")
        if self.cond_frames < 0 or (self.cond_frames > 0) != (self.refined is not None):
            raise ValueError(
                f"cond_frames {self.cond_frames} and refined {self.refined!r} do not fit; pass a clip with refined "
                "frames and how many of them are used, or neither"
            )

    @property
    def conditioning(self) -> int:
        return refinement.given_latents(self.cond_frames)

    @property
    def front(self) -> int:
        """Frames that are made before the first of the result, and left out of it."""
        return refinement.front_padding(self.cond_frames)

    @property
    def clip(self) -> Path:
        return Path(self.video)

    @property
    def source(self) -> Path:
        return self.clip

    @property
    def sources(self) -> tuple[Path, ...]:
        return (self.clip,) if self.refined is None else (self.clip, Path(self.refined))

    @property
    def factor(self) -> int:
        """Frames of the video for each of the clip."""
        return 2 if self.double_frames else 1

    def check(self, asked: Asked) -> None:
        """ValueError for a request that cannot begin so."""
        frames = whole_number("num_frames", asked.num_frames)
        if frames < 1 or frames % self.factor:
            raise ValueError(
                f"num_frames {frames} is not what a refinement makes; use the clip's number of frames, or "
                "twice that with double_frames"
            )
        if frames <= self.cond_frames:
            raise ValueError(f"num_frames {frames} leaves nothing to refine after cond_frames {self.cond_frames}")
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
        return refinement.latent_frames(num_frames, self.cond_frames)

    def encoded_frames(self, num_frames: int) -> int:
        return LATENT_FRAMES * self.latent_frames(num_frames) - 3

    def steps_run(self, steps: int, shift: float) -> int:
        return refinement.steps_run(steps, self.t_thresh, shift)

    def at(self, place: Path | str) -> FromClip:
        """The same with the clip in another place, and refined frames by the name of their file alone."""
        return replace(self, video=str(place), refined=self.refined and Path(self.refined).name)

    def to_dict(self) -> dict[str, Any]:
        written = asdict(self)
        if self.refined is None:
            del written["refined"], written["cond_frames"]
        return {"refine": written}


Start = FromNoise | FromImage | FromFrames | FromClip
STARTS: tuple[type, ...] = get_args(Start)
# Keys of plain values, which `read_start` takes: the kind of each, and its name in sentences.
_WRITTEN: dict[str, tuple[type, str]] = {
    "refine": (FromClip, "refinement"),
    "from_image": (FromImage, "image to begin with"),
    "from_frames": (FromFrames, "continuation"),
}
KEYS = tuple(_WRITTEN)


@dataclass(frozen=True)
class Picture:
    """A readable image file and its size in pixels, as it is shown."""

    path: Path
    height: int
    width: int


def stride_for(fps: float, wanted: int = NATIVE_FPS) -> int:
    """Every how many frames of a clip with `fps` are used so that about `wanted` per second are left."""
    return max(1, round(fps / wanted))


def read_start(values: Mapping[str, Any]) -> Start:
    """Read the start that `to_dict` wrote into a request's plain values; noise if there is none.

    Raises ValueError for a name that is unknown or missing, or a value that cannot be used.
    """
    given = {key: values[key] for key in KEYS if values.get(key) is not None}
    if not given:
        return FromNoise()
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are two ways to begin one video; leave one out")
    ((key, written),) = given.items()
    kind, name = _WRITTEN[key]
    if not isinstance(written, Mapping):
        raise ValueError(f"{key} is a {type(written).__name__}; pass the file with its settings, or null")
    try:
        start: Start = kind(**written)
    except TypeError as error:
        raise ValueError(f"the {name} is incomplete: {str(error).partition('() ')[2]}") from None
    return start


def _check_path(what: str, path: object, kind: str) -> None:
    if not isinstance(path, str) or not path or "\0" in path:
        raise ValueError(f"{what} is {path!r}; pass the path of {kind}")
