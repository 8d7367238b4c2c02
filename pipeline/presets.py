"""Settings that belong together, each with what it needs and what of that is missing here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bsa import BSAConfig

from . import cost
from .checkpoint import EMBEDDED_CHECKPOINT, CheckpointInfo
from .limits import Device
from .request import TOKEN_PIXELS, VideoRequest

# LongCat-Video as published: 13.6 B parameters in the transformer, 5.7 B in UMT5-XXL, 0.13 B in Wan's VAE.
LONGCAT_SHAPE = cost.ModelShape(
    hidden=4096, depth=48, heads=32, ffn=11008, parameters=19_400_000_000, decoder_width=96, decoder_patch=1
)
_FULL_SIZE = 10**9  # parameters from which a transformer is taken for LongCat-Video's own
_HEADROOM = 1.1  # of the modelled peak, because no run has confirmed it

NO_LONGCAT = "LongCat-Video's 13.6 B checkpoint"
NOT_EMBEDDED = "the embedded checkpoint"
NOT_DISTILLED = "the adapter lora/cfg_step_lora.safetensors"
NO_GPU = "a GPU"
SMALL_GPU = "GPU memory ({total:.0f} GiB are here)"
NO_REFINEMENT = "the adapter lora/refinement_lora.safetensors"
NO_CLIP = "a clip on the stage or in Refine a clip"


@dataclass(frozen=True)
class Situation:
    """What presets are judged by. total: bytes of the device's memory. clip: whether there is one to refine."""

    checkpoint: CheckpointInfo
    device: Device
    total: int
    clip: bool = False

    @property
    def full_size(self) -> bool:
        return self.checkpoint.parameters >= _FULL_SIZE


@dataclass(frozen=True)
class Preset:
    """One choice.

    about: what it is for, in a sentence. needs: what it needs, in words.
    values: from the checkpoint to the request's fields that it sets; `bsa` None is dense attention.
    missing: from the situation to what of that is not here, nothing when it can be had.
    refines: whether it is for a clip, and `CheckpointInfo.refinement` has the values.
    """

    name: str
    about: str
    needs: str
    values: Callable[[CheckpointInfo], dict[str, Any]] = field(repr=False)
    missing: Callable[[Situation], tuple[str, ...]] = field(repr=False)
    refines: bool = False


def presets() -> tuple[Preset, ...]:
    """All of them, in the order in which they are shown."""
    return (
        Preset(
            "Embedded tiny (CPU)",
            "The small model of this project, at its own size.",
            "the embedded checkpoint, no GPU",
            _own_settings,
            lambda here: () if _is_embedded(here.checkpoint) else (NOT_EMBEDDED,),
        ),
        _longcat(
            "LongCat 480p",
            "LongCat's own size, with full attention.",
            {"width": 832, "height": 480, "num_frames": 93, "steps": 50, "guidance_scale": 4.0, "bsa": None},
        ),
        _longcat(
            "720p with BSA",
            "704 × 1280, where BSA saves most.",
            {"width": 1280, "height": 704, "num_frames": 93, "steps": 50, "guidance_scale": 4.0, "bsa": BSAConfig()},
        ),
        Preset(
            "Distilled 16 steps",
            "Few steps and no guidance: a sixth of the work.",
            "LongCat's adapter for few steps or a distilled checkpoint",
            _few_steps,
            lambda here: () if _few_steps(here.checkpoint)["use_distill"] else (NOT_DISTILLED,),
        ),
        Preset(
            "Refine",
            "Makes a finer, larger clip of one, as LongCat goes from 480p to 720p.",
            "LongCat's adapter for refinement and a clip",
            lambda info: {},
            _missing_to_refine,
            refines=True,
        ),
        Preset(
            "Low memory",
            "Smaller and shorter; BSA saves time, not memory.",
            "nothing more",
            _small_settings,
            lambda here: (),
        ),
    )


def _longcat(name: str, about: str, values: dict[str, Any]) -> Preset:
    needed = longcat_bytes(VideoRequest(prompt="-", fps=15, **values))

    def missing(here: Situation) -> tuple[str, ...]:
        model = () if here.full_size else (NO_LONGCAT,)
        if here.device.type != "cuda":
            return (*model, NO_GPU)
        return model if here.total >= needed else (*model, SMALL_GPU.format(total=here.total / 2**30))

    needs = f"LongCat-Video and {needed / 2**30:.0f} GiB of GPU memory"
    return Preset(name, about, needs, lambda info: values, missing)


class _Gpu:
    type, index = "cuda", 0


def longcat_bytes(request: VideoRequest) -> int:
    """GPU memory that LongCat-Video's published checkpoint takes for a request, in bfloat16 with nothing offloaded."""
    fixed = cost.fixed_bytes(LONGCAT_SHAPE, _Gpu)
    return int(_HEADROOM * (fixed + cost.activation_bytes(LONGCAT_SHAPE, request, _Gpu)))


def _is_embedded(info: CheckpointInfo) -> bool:
    return info.path.resolve() == EMBEDDED_CHECKPOINT.resolve()


def _own_settings(info: CheckpointInfo) -> dict[str, Any]:
    defaults = info.defaults
    return {
        "width": defaults["width"],
        "height": defaults["height"],
        "num_frames": defaults["num_frames"],
        "steps": defaults["num_inference_steps"],
        "guidance_scale": defaults["guidance_scale"],
        "bsa": info.bsa or BSAConfig(),
    }


def _few_steps(info: CheckpointInfo) -> dict[str, Any]:
    adapter = "distill" if "distill" in info.loras else None
    distilled = adapter is not None or info.defaults["use_distill"]
    few = {"steps": 16, "guidance_scale": 1.0, "use_distill": distilled, "lora": adapter}
    return {**_own_settings(info), **few}


def _missing_to_refine(here: Situation) -> tuple[str, ...]:
    adapter = () if "refine" in here.checkpoint.loras else (NO_REFINEMENT,)
    return adapter if here.clip else (*adapter, NO_CLIP)


def _small_settings(info: CheckpointInfo) -> dict[str, Any]:
    """Five eighths of each side and about half of the frames: a fifth of the tokens."""
    own = _own_settings(info)
    sides = {name: max(1, round(own[name] * 5 / 8 / TOKEN_PIXELS)) * TOKEN_PIXELS for name in ("width", "height")}
    return {**own, **sides, "num_frames": (own["num_frames"] // 8) * 4 + 1}
