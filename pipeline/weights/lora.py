"""LoRA adapters of LongCat-Video, put on its transformer and taken off.

Adapters are applied while the model runs, as in the original: `y = W x + strength * scale * up(down(x))`, with one such
product for each of several. The weights never change, so removing adapters leaves exactly the loaded model, without a
second copy of 25 GiB. FastVideo instead merges the product into the bfloat16 weights, and loses part of it to rounding.

Method: Hu et al. 2021, arXiv 2106.09685.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.checkpoint.adapter import Adapted, read_adapter
from pipeline.request.values import read_adapters
from pipeline.weights import Net

logger = logging.getLogger("pipeline")


@dataclass(frozen=True)
class LoraLayer:
    """The part of an adapter that is added to one linear layer.

    down [rank, inputs] and up [outputs, rank] have the model's dtype and device. scale: alpha / rank, times the
    strength.
    """

    down: Tensor
    up: Tensor
    scale: float

    def add_(self, out: Tensor, x: Tensor) -> Tensor:
        """Add the adapter's product for the input `x` [..., inputs] to the layer's output `out` [..., outputs].

        Works in place and in the dtype of `out`. As in the original, fp32 outputs (the modulation) get fp32 products.
        Returns `out`.
        """
        down, up = self.down.to(out.dtype), self.up.to(out.dtype)
        low = F.linear(x.to(out.dtype), down)
        out.view(-1, out.shape[-1]).addmm_(low.flatten(0, -2), up.t(), alpha=self.scale)
        return out


@dataclass(frozen=True)
class LoraSum:
    """The parts of several adapters that are added to one linear layer."""

    parts: tuple[LoraLayer, ...]

    def add_(self, out: Tensor, x: Tensor) -> Tensor:
        """As `LoraLayer.add_`, for one part after the other."""
        for part in self.parts:
            part.add_(out, x)
        return out


class LoraSwitch:
    """Attaches adapters to a transformer, and removes them again.

    files: adapter name -> file. Only the adapters in use are kept in memory.
    """

    def __init__(self, transformer: Net, files: Mapping[str, Path]) -> None:
        self.active: str | None = None
        self._transformer = transformer
        self._files = files
        self._loaded: dict[str, dict[str, LoraLayer]] = {}  # at strength 1
        self._layers: list[Net] = []

    def use(self, lora: str | None) -> None:
        """Run with these adapters from now on, see `read_adapters`; None stands for the model alone.

        Raises:
            ValueError: an adapter does not exist, or its file does not fit the model. Nothing was changed.
        """
        if lora == self.active:
            return
        asked = [adapter for adapter in read_adapters(lora, self._files) if adapter.strength]
        loaded = {}
        for name in (adapter.name for adapter in asked):
            loaded[name] = self._loaded.get(name) or load_lora(self._files[name], self._transformer)
        parts: dict[str, list[LoraLayer]] = {}
        for adapter in asked:
            for target, layer in loaded[adapter.name].items():
                parts.setdefault(target, []).append(replace(layer, scale=adapter.strength * layer.scale))
        for module in self._layers:
            del module.lora
        self._layers = [self._transformer.get_submodule(target) for target in parts]
        for module, some in zip(self._layers, parts.values(), strict=True):
            module.lora = some[0] if len(some) == 1 else LoraSum(tuple(some))
        self.active, self._loaded = lora, loaded
        for adapter in asked:
            count, file = len(loaded[adapter.name]), self._files[adapter.name]
            logger.info("LoRA adapter %s from %s is applied to %d layers", adapter, file, count)


def load_lora(path: Path, transformer: Net) -> dict[str, LoraLayer]:
    """Read an adapter file for a transformer with FastVideo's names, into the transformer's dtype and device.

    Returns:
        Layer name -> the part of the adapter for this layer.

    Raises:
        ValueError: the file is damaged, or its layers are not those of this model; see `read_adapter`.
    """
    weights = {name: getattr(module, "weight", None) for name, module in transformer.named_modules()}
    linear = {name: tuple(weight.shape) for name, weight in weights.items() if weight is not None and weight.ndim == 2}
    adapted = read_adapter(path, linear)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"the LoRA file {path} cannot be read ({error}); copy or download it again") from None
    weight = transformer.patch_embed.proj.weight
    layers: dict[str, LoraLayer] = {}
    for one in adapted:
        scale = one.scale * (1.0 if one.factor is None else float(tensors[one.factor]))
        if not math.isfinite(scale):
            raise ValueError(f"{path} has the scale {scale} for {one.layers[0]}; copy or download it again")
        for layer, down, up in _split(one, tensors):
            layers[layer] = LoraLayer(down.to(weight), up.to(weight), scale)
    return layers


def _split(one: Adapted, tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor, Tensor]]:
    """(layer, down, up) for every layer that one module of the file stands for."""
    down, ups = tensors[one.down], [tensors[name] for name in one.ups]
    if len(ups) == len(one.layers):  # each of the fused projections has a product of its own
        return list(zip(one.layers, down.chunk(len(ups)), ups, strict=True))
    rows = torch.block_diag(*ups).chunk(len(one.layers))
    return [(layer, down, up) for layer, up in zip(one.layers, rows, strict=True)]
