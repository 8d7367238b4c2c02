"""LoRA adapters of LongCat-Video, read from LongCat's files or from files of FastVideo's converter.

Adapters are applied while the model runs, as in the original: `y = W x + scale * up(down(x))`. The weights never
change, so removing an adapter leaves exactly the loaded model, without a second copy of 25 GiB. FastVideo instead
merges the product into the bfloat16 weights, and loses part of it to rounding.

Method: Hu et al. 2021, arXiv 2106.09685.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.weights import Net

logger = logging.getLogger("pipeline")

_HYPHEN = "___lorahyphen___"  # replaces the dots of a name in LongCat's files
_KEY = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_down|lora_up|lora_up\.blocks\.\d+|alpha_scale|lora_A|lora_B|lora_alpha)(\.weight)?"
)
# LongCat's layer names -> FastVideo's, which splits some layers: within a block, and in the rest of the model.
_IN_BLOCK = {
    "attn.qkv": ("self_attn.to_q", "self_attn.to_k", "self_attn.to_v"),
    "attn.proj": ("self_attn.to_out",),
    "cross_attn.q_linear": ("cross_attn.to_q",),
    "cross_attn.kv_linear": ("cross_attn.to_k", "cross_attn.to_v"),
    "cross_attn.proj": ("cross_attn.to_out",),
    "adaLN_modulation.1": ("adaln_linear_1",),
}
_ELSEWHERE = {
    "t_embedder.mlp.0": ("time_embedder.linear_1",),
    "t_embedder.mlp.2": ("time_embedder.linear_2",),
    "y_embedder.y_proj.0": ("caption_embedder.linear_1",),
    "y_embedder.y_proj.2": ("caption_embedder.linear_2",),
    "final_layer.adaLN_modulation.1": ("final_layer.adaln_linear",),
    "final_layer.linear": ("final_layer.proj",),
}


@dataclass(frozen=True)
class LoraLayer:
    """The part of an adapter that is added to one linear layer.

    down [rank, inputs] and up [outputs, rank] have the model's dtype and device. scale: alpha / rank.
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


class LoraSwitch:
    """Attaches one adapter at a time to a transformer, and removes it again.

    files: adapter name -> file. Only the adapter in use is kept in memory.
    """

    def __init__(self, transformer: Net, files: Mapping[str, Path]) -> None:
        self.active: str | None = None
        self._transformer = transformer
        self._files = files
        self._layers: list[Net] = []

    def use(self, name: str | None) -> None:
        """Run with adapter `name` from now on; None stands for the model alone.

        Raises:
            ValueError: the adapter does not exist, or its file does not fit the model. Nothing was changed.
        """
        if name == self.active:
            return
        layers = {} if name is None else load_lora(self._files[name], self._transformer)
        for layer in self._layers:
            del layer.lora
        self._layers = [self._transformer.get_submodule(target) for target in layers]
        for layer, lora in zip(self._layers, layers.values(), strict=True):
            layer.lora = lora
        self.active = name
        if name is not None:
            logger.info("LoRA adapter %s from %s is applied to %d layers", name, self._files[name], len(layers))


def load_lora(path: Path, transformer: Net) -> dict[str, LoraLayer]:
    """Read an adapter file for a transformer with FastVideo's names, into the transformer's dtype and device.

    Two kinds of keys are known: LongCat's (`lora___lorahyphen___blocks___lorahyphen___0...lora_down.weight`, with fused
    projections and `alpha_scale`) and FastVideo's (`blocks.0.self_attn.to_q.lora_A`, with `lora_alpha`).

    Returns:
        Layer name -> the part of the adapter for this layer.

    Raises:
        ValueError: the file is damaged, or its layers do not match this model.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"the LoRA file {path} cannot be read ({error}); copy or download it again") from None
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(f"lora{_HYPHEN}").replace(_HYPHEN, ".").removeprefix("diffusion_model.")
        found = _KEY.fullmatch(name)
        if found is None:
            raise ValueError(f"{path} has the key {key!r}, which no LongCat LoRA has; use an adapter made for LongCat")
        modules.setdefault(found["module"], {})[found["part"]] = tensor
    if not modules:
        raise ValueError(f"the LoRA file {path} is empty; copy or download it again")
    weight = transformer.patch_embed.proj.weight
    layers: dict[str, LoraLayer] = {}
    for module, parts in modules.items():
        for target, down, up, scale in _split(path, module, parts):
            _check(path, target, down, up, transformer)
            layers[target] = LoraLayer(down.to(weight), up.to(weight), scale)
    return layers


def _split(path: Path, module: str, parts: dict[str, Tensor]) -> list[tuple[str, Tensor, Tensor, float]]:
    """Split one module of the file into (layer, down, up, scale), for each of the layers that it is fused from."""
    if "lora_A" in parts and "lora_B" in parts:
        down, up = parts["lora_A"], parts["lora_B"]
        alpha = parts.get("lora_alpha")
        return [(module, down, up, 1.0 if alpha is None else float(alpha) / down.shape[0])]
    ups = [parts[name] for name in sorted((n for n in parts if n.startswith("lora_up")), key=_number)]
    if "lora_down" not in parts or not ups:
        raise ValueError(f"the LoRA file {path} is incomplete at {module}; copy or download it again")
    down, scale = parts["lora_down"], float(parts.get("alpha_scale", torch.tensor(1.0)))
    block = re.match(r"blocks\.\d+\.", module)
    inner = module[block.end() :] if block else module
    known = (_IN_BLOCK if block else _ELSEWHERE).get(inner, (inner,))
    targets = [(block[0] if block else "") + name for name in known]
    if len(ups) == len(targets):  # each of the fused projections has its own product
        return [(*entry, scale) for entry in zip(targets, down.chunk(len(ups)), ups, strict=True)]
    rows = torch.block_diag(*ups).chunk(len(targets))
    return [(target, down, up, scale) for target, up in zip(targets, rows, strict=True)]


def _number(name: str) -> int:
    last = name.rpartition(".")[2]
    return int(last) if last.isdecimal() else 0


def _check(path: Path, target: str, down: Tensor, up: Tensor, transformer: Net) -> None:
    try:
        weight: Tensor | None = transformer.get_submodule(target).weight
    except AttributeError:
        weight = None
    if weight is None or weight.ndim != 2:
        raise ValueError(
            f"{path} adapts the layer {target}, and this checkpoint has no such linear layer; "
            "use an adapter that was made for it"
        ) from None
    outputs, inputs = weight.shape
    if (down.ndim, up.ndim) != (2, 2) or (up.shape[0], down.shape[1], up.shape[1]) != (outputs, inputs, down.shape[0]):
        raise ValueError(
            f"{path} has products of {list(up.shape)} and {list(down.shape)} for {target}, which is "
            f"{outputs} x {inputs}; use an adapter that was made for this checkpoint"
        )
