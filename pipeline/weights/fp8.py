"""Computes matrix products of the transformer's blocks in 8 bits (e4m3), with 8-bit weights. Off by default.

Weights get one scale per output channel at conversion, and activations one scale per token at use. The scales map the
largest magnitude of each row to 448, the largest e4m3 number (arXiv 2209.05433). `torch._scaled_mm` multiplies two such
matrices on GPUs of compute capability 8.9 and up. The CPU computes the same from the dequantised numbers, in fp32.

Three parts are not converted, 5 % of the weights. Errors of the embeddings and of the last layer would not be averaged
out by later layers. The modulation scales and shifts whole branches, and the original computes it in fp32.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.weights import Net

LARGEST = 448.0
# Hopper may keep the running sums of a product in fewer bits than fp32. benchmarks/fused_check.py measures both modes.
FAST_SUMS = True
CAPABILITY = 8, 9
LAYERS = (
    *(f"{part}.{name}" for part in ("self_attn", "cross_attn") for name in ("to_q", "to_k", "to_v", "to_out")),
    *(f"ffn.{name}" for name in ("w1", "w2", "w3")),
)


class Quantised(NamedTuple):
    """Rows of 8-bit numbers that stand for ``values * scales``.

    values: float8_e4m3fn [..., K]; scales: fp32 [..., 1].
    """

    values: Tensor
    scales: Tensor

    def to(self, dtype: torch.dtype) -> Tensor:
        """The numbers that it stands for, as an ordinary tensor [..., K]."""
        return (self.values.float() * self.scales).to(dtype)


def quantise(x: Tensor) -> Quantised:
    """Quantise x [..., K] with one scale per row. Values are rounded to nearest."""
    x = x.float()
    scales = x.abs().amax(-1, keepdim=True).clamp_(min=1e-12) / LARGEST
    # e4m3fn has no infinity: a quotient that rounding leaves above 448 would become NaN.
    return Quantised((x / scales).clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scales)


class Fp8Linear(nn.Module):
    """A linear layer with 8-bit weights. Its input is a tensor or a `Quantised`.

    It may be moved to another device, but not cast to another dtype, which would undo the quantisation.
    """

    weight: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """weight [out, in] and bias [out]: in the dtype of the results. in and out must be multiples of 16."""
        super().__init__()
        self.dtype = weight.dtype
        values, scales = quantise(weight.detach())
        self.register_buffer("weight", values)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", None if bias is None else bias.detach())

    def forward(self, x: Tensor | Quantised) -> Tensor:
        """Map [..., in] to [..., out], in the original dtype of the weights."""
        values, scales = quantise(x) if isinstance(x, Tensor) else x
        return self._product(values.flatten(0, -2), scales.flatten(0, -2)).unflatten(0, values.shape[:-1])

    def _product(self, values: Tensor, scales: Tensor) -> Tensor:
        if not values.is_cuda:
            out = values.float() @ self.weight.float().T * scales * self.scales.T
            return (out if self.bias is None else out + self.bias.float()).to(self.dtype)
        check_device(values.device)
        return torch._scaled_mm(
            values, self.weight.T, scales, self.scales.T, bias=self.bias, out_dtype=self.dtype, use_fast_accum=FAST_SUMS
        )


def to_fp8(transformer: Net, blocks: slice = slice(None)) -> nn.Module:
    """Replace the linear layers named in `LAYERS` by `Fp8Linear`, in place. Returns the transformer.

    blocks: the blocks of the transformer to convert.
    It converts one layer at a time, so that 16-bit and 8-bit weights never exist side by side. A transformer too large
    for the GPU can be converted on the CPU and moved afterwards. A second conversion changes nothing.

    Raises:
        ValueError: the GPU has no fp8 products, a layer carries a LoRA adapter, or the size of a layer is not a
            multiple of 16. Nothing was changed.
    """
    found = [
        (f"blocks.{number}.{name}", block.get_submodule(parent), child)
        for number, block in list(enumerate(transformer.blocks))[blocks]
        for name in LAYERS
        for parent, child in (name.split("."),)
        if not isinstance(block.get_submodule(name), Fp8Linear)
    ]
    for name, parent, child in found:
        layer = getattr(parent, child)
        if hasattr(layer, "lora"):
            raise ValueError(f"{name} has a LoRA adapter on; take it off while the weights are converted to fp8")
        if any(channels % 16 for channels in layer.weight.shape):
            raise ValueError(
                f"{name} has {layer.weight.shape[1]} to {layer.weight.shape[0]} channels, and fp8 products need "
                "multiples of 16; leave fp8 off"
            )
        if layer.weight.is_cuda:
            check_device(layer.weight.device)
    for _, parent, child in found:
        layer = getattr(parent, child)
        setattr(parent, child, Fp8Linear(layer.weight, layer.bias))
    return transformer


def is_fp8(transformer: Net) -> bool:
    """Whether the transformer's blocks were converted."""
    return isinstance(transformer.blocks[0].ffn.w1, Fp8Linear)


def weight_bytes(module: Net) -> int:
    """Bytes of a module's parameters and buffers, on any device."""
    return sum(x.numel() * x.element_size() for x in (*module.parameters(), *module.buffers()))


@lru_cache(maxsize=8)
def check_device(device: torch.device) -> None:
    """Raise ValueError for a GPU without fp8 products."""
    capability = torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        raise ValueError(
            f"fp8 needs a GPU of compute capability 8.9 or higher (Ada, Hopper and later), and "
            f"{torch.cuda.get_device_name(device)} has {capability[0]}.{capability[1]}; leave fp8 off"
        )
