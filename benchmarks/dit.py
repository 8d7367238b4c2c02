"""Makes a LongCat transformer of the real size with random weights on the device, and inputs for it."""

import gc
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

from bsa import Grid
from pipeline.weights.fp8 import to_fp8
from pipeline.weights.offload import Offload
from training.dit import DiTConfig, LongCatDiT

SIZES = {"480p": (480, 832), "704p": (704, 1280), "720p": (720, 1280), "1080p": (1088, 1920)}
REAL = {
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "depth": 48,
    "caption_channels": 4096,
    "adaln_tembed_dim": 512,
    "frequency_embedding_size": 256,
}
SMOKE = {"hidden_size": 64, "num_attention_heads": 4, "depth": 2, "caption_channels": 32}


class Models:
    """The transformer in one form at a time: "bf16" (fp32 on the CPU), "fp8", "bf16 offload" or "fp8 offload".

    A form is made when it is requested, always with the same weights, and dropped when another one is requested.
    """

    def __init__(self, device: torch.device, smoke: bool) -> None:
        self._device, self._smoke = device, smoke
        self._form: str | None = None
        self._made: tuple[LongCatDiT, Offload | None] | None = None

    def __call__(self, form: str) -> tuple[LongCatDiT, Offload | None]:
        if form != self._form:
            self.drop()
            model = build(self._device, self._smoke)
            if "fp8" in form:
                to_fp8(model)
            self._made = model, Offload(model, self._device) if "offload" in form else None
            self._form = form
        return self._made

    def drop(self) -> None:
        self._form = self._made = None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def build(device: torch.device, smoke: bool) -> LongCatDiT:
    """Build a model with 13.6 B parameters in bf16, or a tiny one in fp32. No branch of a block is zero."""
    with torch.device("meta"):
        model = LongCatDiT(DiTConfig(**(SMOKE if smoke else REAL))).requires_grad_(False)
    model = model.to(torch.float32 if smoke else torch.bfloat16).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            weight.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        else:
            weight.normal_(0, weight[0].numel() ** -0.5, generator=generator)
    return model


def grid_of(size: str, frames: int) -> Grid:
    height, width = SIZES[size]
    return Grid(1 + (frames - 1) // 4, height // 16, width // 16)


def inputs(model: nn.Module, grid: Grid, device: torch.device, rows: int = 1) -> tuple:
    """Return latents, timestep, text (512 tokens, or 64 in the tiny model) and None for the mask."""
    generator = torch.Generator(device).manual_seed(1)
    dtype = model.patch_embed.proj.weight.dtype
    shape = [n * p for n, p in zip(grid, model.patch_size, strict=True)]
    latents = torch.randn(rows, model.config.in_channels, *shape, device=device, generator=generator).to(dtype)
    channels = model.config.caption_channels
    text = torch.randn(rows, 512 if channels > 1000 else 64, channels, device=device, generator=generator).to(dtype)
    return latents, torch.full((rows,), 500.0, device=device), text, None
