"""The presets: settings that belong together, their needs, and the needs that this machine or model cannot meet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from bsa import BSAConfig
from bsa.selectors import CELLS
from pipeline.checkpoint.info import EMBEDDED_CHECKPOINT, CheckpointInfo
from pipeline.checkpoint.shape import ModelShape
from pipeline.estimate import footprint
from pipeline.estimate.choose_attention import sparsest
from pipeline.machine.device import DeviceName
from pipeline.machine.gpus import Device
from pipeline.request.load_options import AS_STORED, LoadOptions
from pipeline.request.video import TOKEN_PIXELS, VideoRequest

# LongCat-Video as published: 13.6 B parameters in the transformer, 5.7 B in UMT5-XXL, 0.13 B in Wan's VAE.
LONGCAT_SHAPE = ModelShape(
    hidden=4096,
    depth=48,
    heads=32,
    ffn=11008,
    modulation=512,
    transformer=13_580_000_000,
    text_encoder=5_680_000_000,
    text_visit=1_240_000_000,
    vae=130_000_000,
    decoder_width=96,
    decoder_patch=1,
)
_FULL_SIZE = 10**9  # a transformer with at least so many parameters counts as LongCat-Video's own
_LEAST = LoadOptions("fp8", offload=True)
_HEADROOM = 1.1  # factor on the modelled peak, because no run has confirmed it

# docs/quality.md
BY_CELLS = (
    "Cells choose its blocks: 1.1 to 2.2 dB closer to the dense video on average in the study, for 6% more time a step."
)

NO_LONGCAT = "LongCat-Video's 13.6 B checkpoint"
NOT_EMBEDDED = "the embedded checkpoint"
NOT_DISTILLED = "the adapter lora/cfg_step_lora.safetensors"
NO_GPU = "a GPU"
SMALL_GPU = "GPU memory ({total:.0f} GiB are here)"
OPTIONS = "a start with {options}"
NO_REFINEMENT = "the adapter lora/refinement_lora.safetensors"
NO_CLIP = "a clip on the stage or in Refine a clip"


@dataclass(frozen=True)
class Situation:
    """The facts that decide whether a preset is available.

    total: bytes of the device's memory. clip: whether there is a clip to refine. weights: how the model's are kept.
    """

    checkpoint: CheckpointInfo
    device: Device
    total: int
    clip: bool = False
    weights: LoadOptions = AS_STORED

    @property
    def full_size(self) -> bool:
        return self.checkpoint.parameters >= _FULL_SIZE


@dataclass(frozen=True)
class Preset:
    """One preset.

    about: its purpose, in a sentence. why: the reason for its attention, in a sentence, by what was measured.
    needs: returns its needs in a situation, in words.
    values: returns the request's fields that it sets for a checkpoint; `bsa` None is dense attention.
    missing: returns the needs that a situation does not meet; empty if the preset is available.
    refines: whether it is for a clip; `CheckpointInfo.refinement` then has the values.
    """

    name: str
    about: str
    why: str
    needs: Callable[[Situation], str] = field(repr=False)
    values: Callable[[CheckpointInfo], dict[str, Any]] = field(repr=False)
    missing: Callable[[Situation], tuple[str, ...]] = field(repr=False)
    refines: bool = False


def presets() -> tuple[Preset, ...]:
    """All presets, in the order in which the page shows them."""
    return (
        Preset(
            "Embedded tiny (CPU)",
            "The small model of this project, at its own size.",
            BY_CELLS,
            lambda here: "the embedded checkpoint, no GPU",
            _own_settings,
            lambda here: () if _is_embedded(here.checkpoint) else (NOT_EMBEDDED,),
        ),
        _longcat(
            "LongCat 480p",
            "LongCat's own size, with full attention.",
            "BSA makes a forward pass 2.1 times as fast on an H100, at a loss that was not measured at this size.",
            {"width": 832, "height": 480, "num_frames": 93, "steps": 50, "guidance_scale": 4.0, "bsa": None},
        ),
        _longcat(
            "720p with BSA",
            "704 × 1280, where BSA saves most.",
            BY_CELLS,
            {
                "width": 1280,
                "height": 704,
                "num_frames": 93,
                "steps": 50,
                "guidance_scale": 4.0,
                "bsa": BSAConfig(selection=CELLS),
            },
        ),
        Preset(
            "Distilled 16 steps",
            "Few steps and no guidance: a sixth of the work.",
            BY_CELLS,
            lambda here: "LongCat's adapter for few steps or a distilled checkpoint",
            _few_steps,
            lambda here: () if _few_steps(here.checkpoint)["use_distill"] else (NOT_DISTILLED,),
        ),
        Preset(
            "Refine",
            "Makes a finer, larger clip of one, as LongCat goes from 480p to 720p.",
            "Its attention is LongCat's own, with which the adapter was trained.",
            lambda here: "LongCat's adapter for refinement and a clip",
            lambda info: {},
            _missing_to_refine,
            refines=True,
        ),
        Preset(
            "Low memory",
            "Smaller and shorter; BSA saves time, not memory.",
            "It keeps 16 key blocks or more, or is dense: in the study 8 instead of 16 took PSNR from 35 to 30 dB.",
            _needs_when_small,
            _small_settings,
            _missing_when_small,
        ),
    )


def _longcat(name: str, about: str, why: str, values: dict[str, Any]) -> Preset:
    request = VideoRequest(prompt="-", fps=15, **values)

    def missing(here: Situation) -> tuple[str, ...]:
        model = () if here.full_size else (NO_LONGCAT,)
        if here.device.type != "cuda":
            return (*model, NO_GPU)
        return (*model, *_missing_memory(request, here))

    def needs(here: Situation) -> str:
        return f"LongCat-Video and {longcat_bytes(request, here.weights) / 2**30:.0f} GiB of GPU memory"

    return Preset(name, about, why, needs, lambda info: values, missing)


def _missing_memory(request: VideoRequest, here: Situation) -> tuple[str, ...]:
    """The things that LongCat-Video lacks for a request on this GPU: load options, memory, or nothing."""

    def fits(weights: LoadOptions) -> bool:
        return longcat_bytes(request, weights) <= here.total

    if fits(here.weights):
        return ()
    smaller = next(filter(fits, here.weights.smaller()), None)
    return (SMALL_GPU.format(total=here.total / 2**30) if smaller is None else OPTIONS.format(options=smaller),)


_GPU = DeviceName("cuda", 0)


def longcat_bytes(request: VideoRequest, weights: LoadOptions = AS_STORED) -> int:
    """Bytes of GPU memory that LongCat-Video's published checkpoint needs for a request."""
    fixed = footprint.fixed_bytes(LONGCAT_SHAPE, _GPU, weights)
    return int(_HEADROOM * (fixed + footprint.activation_bytes(LONGCAT_SHAPE, request, _GPU, weights)))


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
        "bsa": replace(info.sparse, selection=CELLS),
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
    """Settings with five eighths of each side and about half of the frames, which make a fifth of the tokens."""
    own = _own_settings(info)
    sides = {name: max(1, round(own[name] * 5 / 8 / TOKEN_PIXELS)) * TOKEN_PIXELS for name in ("width", "height")}
    small = {**own, **sides, "num_frames": (own["num_frames"] // 8) * 4 + 1}
    return {**small, "bsa": sparsest(info.request("-", **small), info.sparse)}


def _small_request(here: Situation) -> VideoRequest | None:
    """The request of the preset "Low memory" if memory can be short, which is for LongCat-Video on a GPU; else None."""
    if not here.full_size or here.device.type != "cuda":
        return None
    return here.checkpoint.request("-", **_small_settings(here.checkpoint))


def _needs_when_small(here: Situation) -> str:
    request = _small_request(here)
    if request is None:
        return "nothing more"
    least = longcat_bytes(request, _LEAST) / 2**30
    return f"{longcat_bytes(request, here.weights) / 2**30:.0f} GiB of GPU memory, and {least:.0f} GiB with {_LEAST}"


def _missing_when_small(here: Situation) -> tuple[str, ...]:
    request = _small_request(here)
    return () if request is None else _missing_memory(request, here)
