"""The request for one video, and the progress reports while it is made."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from bsa import BSAConfig, Grid
from pipeline.request.start import KEYS, STARTS, FromNoise, Start, read_start
from pipeline.request.values import number, read_adapters, real_number, whole_number
from pipeline.request.workload import Workload

# Strides of LongCat: the Wan VAE turns 8x8 pixels into one latent, the transformer turns 1x2x2 latents into one token.
LATENT_PIXELS = 8
TOKEN_PIXELS = 16

MAX_PROMPT_TOKENS = 512
# The token count needs the checkpoint's tokenizer and is checked in `generate`. This bound needs nothing:
# no tokenizer in use packs more than about 10 characters of prose into one token.
MAX_PROMPT_CHARACTERS = 5000

# Of no width, though Unicode calls them letters and marks: fillers, the grapheme joiner, selectors of a variant.
_INVISIBLE = frozenset("\u034f\u115f\u1160\u3164\uffa0\ufe0e\ufe0f")


class Cancelled(Exception):
    """Raise this from `on_step` to stop a generation; the pipeline stays usable."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoRequest:
    """One video: from text alone, from an image or the end of a clip, or the refinement of a clip.

    Attributes:
        prompt, negative_prompt: text; the negative prompt counts only when guidance_scale is above 1.
        height, width: pixels, multiples of 16.
        num_frames: 4n + 1 frames, those that are given included; of a refinement, as many as its clip has, or twice as
            many.
        steps: denoising steps.
        guidance_scale: 1 turns classifier-free guidance off and halves the work.
        seed: of the initial noise, which is drawn on the CPU and so is the same on every device.
        fps: frames per second of the video file.
        teacache_thresh: above 0, steps that differ by less than this from the one in which the transformer last ran go
            on with its flow (TeaCache, see `pipeline.model.teacache`); 0 runs it in every step.
        bsa: block sparse attention, or None for dense attention.
        use_distill: sigmas of LongCat's distilled (few-step) model instead of the regular ones.
        lora: adapters of the checkpoint to run with (see `CheckpointInfo.loras`), such as "distill", "style:0.7" for a
            weaker one, or "distill+style:0.7" for both; None for the model alone.
        start: how it begins: `FromNoise`, `FromImage`, `FromFrames` to continue a clip, or `FromClip` to refine a clip
            into this size. `steps` are then those of the whole schedule, of which the part below the clip's noise level
            runs.
        auto: why the program chose this attention (see `choose_attention`), or None if it was asked for.

    Raises:
        ValueError: a value cannot be used; the message says what can.
    """

    prompt: str
    negative_prompt: str = ""
    height: int
    width: int
    num_frames: int
    steps: int
    guidance_scale: float
    seed: int = 0
    fps: int
    bsa: BSAConfig | None
    use_distill: bool = False
    lora: str | None = None
    teacache_thresh: float = 0.0
    start: Start = FromNoise()
    auto: str | None = None

    def __post_init__(self) -> None:
        for name in ("prompt", "negative_prompt"):
            _check_text(name, getattr(self, name))
        if not any(map(_shows, self.prompt)):
            raise ValueError("the prompt is empty; describe the video in a sentence or two")
        for name in ("height", "width", "num_frames", "steps", "seed", "fps"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name)))
        # A float also of a whole number: equal requests are written equally.
        for name in ("guidance_scale", "teacache_thresh"):
            object.__setattr__(self, name, real_number(name, getattr(self, name)))
        for name in ("height", "width"):
            _check_size(name, getattr(self, name))
        if not isinstance(self.start, STARTS):
            kinds = "FromNoise(), FromImage(image=...), FromFrames(video=...) or FromClip(video=...)"
            raise ValueError(f"start is a {type(self.start).__name__}; pass {kinds}")
        self.start.check(self)
        if not 1 <= self.steps <= 1000:
            raise ValueError(f"steps {self.steps} is outside 1 to 1000; LongCat uses 50, its distilled model 16")
        if not isinstance(self.use_distill, bool):
            raise ValueError(f"use_distill {self.use_distill!r} is not true or false; pass one of them")
        if self.use_distill and self.steps > 50:
            raise ValueError(f"steps {self.steps} is more than the 50 of the distilled schedule; use at most 50")
        if not 1 <= self.guidance_scale <= 100:
            raise ValueError(
                f"guidance_scale {self.guidance_scale} is outside 1 to 100; use 1 for none, about 4 for LongCat"
            )
        if not 0 <= self.teacache_thresh <= 1:
            raise ValueError(
                f"teacache_thresh {self.teacache_thresh} is outside 0 to 1; use 0 to run every step, or a little such "
                "as 0.05 to skip some"
            )
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed {self.seed} is outside 0 to 2^63 - 1; use a smaller non-negative number")
        if not 1 <= self.fps <= 120:
            raise ValueError(f"fps {self.fps} is outside 1 to 120; LongCat videos are made for 15")
        if self.bsa is not None and not isinstance(self.bsa, BSAConfig):
            raise ValueError(f"bsa is a {type(self.bsa).__name__}; pass a BSAConfig, or None for dense attention")
        for kind in ("chunk_q", "chunk_k") if self.bsa is not None else ():
            for side in getattr(self.bsa, kind):
                number(kind, side)
        if self.lora is not None and not (isinstance(self.lora, str) and self.lora and _is_text(self.lora)):
            raise ValueError(f"lora {self.lora!r} is not the name of an adapter; pass one such as 'distill', or None")
        read_adapters(self.lora)
        if self.auto is not None:
            _check_text("auto", self.auto)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Latent frames, rows and columns."""
        frames = self.start.latent_frames(self.num_frames)
        return frames, self.height // LATENT_PIXELS, self.width // LATENT_PIXELS

    @property
    def grid(self) -> Grid:
        """Token grid of the transformer: one token per latent frame and 16x16 pixels."""
        return Grid(self.latent_shape[0], self.height // TOKEN_PIXELS, self.width // TOKEN_PIXELS)

    @property
    def workload(self) -> Workload:
        """The work that it means for the transformer; see `Workload`."""
        given, cached = self.start.conditioning, self.start.cached
        return Workload.of(self.grid, self.guidance_scale, self.bsa, self.num_frames, given, cached, self.auto)

    @property
    def dense(self) -> VideoRequest:
        """The same with dense attention, asked for as what the video is compared with."""
        return replace(self, bsa=None, auto=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; `from_dict` reads them back."""
        values = {name: getattr(self, name) for name in self.__slots__ if name != "start"}
        values["bsa"] = None if self.bsa is None else self.bsa.to_bsa_params()
        for name in ("auto", "teacache_thresh"):
            if not values[name]:
                del values[name]  # so that earlier versions read the settings, too
        return values | self.start.to_dict()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> VideoRequest:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: a name is unknown or missing, or a value cannot be used.
        """
        known = [name for name in cls.__slots__ if name != "start"] + list(KEYS)
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"unknown request field {unknown[0]!r}; the fields are {', '.join(known)}")
        given = {name: value for name, value in values.items() if name not in KEYS}
        if isinstance(given.get("bsa"), dict):
            given["bsa"] = BSAConfig.from_bsa_params(given["bsa"])
        try:
            return cls(**given, start=read_start(values))
        except TypeError as error:
            raise ValueError(f"the request is incomplete: {str(error).partition('() ')[2]}") from None


@dataclass(frozen=True)
class StepUpdate:
    """Progress of one generation, sent before the first and after every step of a phase.

    Attributes:
        phase: "text" (prompt encoding), "encode" (of an image or clip), "denoise" or "decode"; encoding and
            decoding count latent frames.
        step, total: steps of the phase done and to do.
        seconds: since the phase began.
        preview: call it for a small preview of the video as it would end now, uint8
            [latent frames, rows, columns, 3]; None outside of denoising. Costs nothing unless called.
    """

    phase: Literal["text", "encode", "denoise", "decode"]
    step: int
    total: int
    seconds: float
    preview: Callable[[], np.ndarray] | None = None


def _check_text(name: str, text: object) -> None:
    label = name.replace("_", " ")
    if not isinstance(text, str):
        raise ValueError(f"the {label} is a {type(text).__name__}; pass text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the {label} has an invalid character at position {error.start}; type it again") from None
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise ValueError(
            f"the {label} has {len(text)} characters, the limit is {MAX_PROMPT_CHARACTERS}; LongCat reads "
            f"{MAX_PROMPT_TOKENS} tokens (about 2000 characters) and the rest would have no effect, so shorten it"
        )


def _is_text(text: str) -> bool:
    """Whether it can be written: JSON knows halves of characters, which nothing can write."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shows(character: str) -> bool:
    """Whether it is more than space, a control or something else of no width."""
    return unicodedata.category(character) not in ("Cc", "Cf", "Zl", "Zp", "Zs") and character not in _INVISIBLE


def _check_size(name: str, value: int) -> None:
    if value < TOKEN_PIXELS:
        raise ValueError(f"{name} {value} is too small; use a multiple of {TOKEN_PIXELS} from {TOKEN_PIXELS} on")
    if value % TOKEN_PIXELS:
        below = value // TOKEN_PIXELS * TOKEN_PIXELS
        raise ValueError(f"{name} {value} is not a multiple of {TOKEN_PIXELS}; try {below} or {below + TOKEN_PIXELS}")
