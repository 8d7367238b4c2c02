"""The elementwise work of a LongCat block in PyTorch. `fused_triton.py` has the same functions as kernels, and
`fused_cpu.py` in a form that suits a CPU.

Both compute in fp32 and round once. The kernels exist because on a fast GPU these few operations, run as separate
PyTorch kernels, take longer than the matrix products. Shape letters as in `forward.py`; F frames, H heads.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bsa import BlockLayout
from bsa.selection import pool_in_order
from pipeline.transformer.forward import embed_patches
from pipeline.weights.fp8 import Quantised, quantise


def residual_norm_(
    x: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    gain: Tensor | None,
    shift: Tensor | None,
    frames: Tensor | None,
    fp8: bool = False,
) -> Tensor | Quantised | None:
    """Compute ``x += gate * branch`` in place, and return ``layer_norm(x) * gain + shift`` as a new tensor.

    x, branch: [B, N, E]. Without a branch, x is unchanged.
    gate: fp32 [B, F, E]; None means 1.
    gain, shift: fp32 [B or 1, F or 1, E], both with the same strides, unit stride in the last axis. Without them
        nothing is returned.
    frames: int32 [N], the row of F that each token uses; None if F is 1.
    fp8: quantise the new tensor from its fp32 values.
    """

    def of_tokens(rows: Tensor) -> Tensor:
        return rows if frames is None or rows.shape[1] == 1 else rows[:, frames.long()]

    if branch is not None:
        x.copy_(x.float() + (branch.float() if gate is None else branch.float() * of_tokens(gate)))
    if gain is None or shift is None:
        return None
    out = F.layer_norm(x.float(), x.shape[-1:], eps=1e-6) * of_tokens(gain) + of_tokens(shift)
    return quantise(out) if fp8 else out.type_as(x)


def head_norm_(
    x: Tensor, weight: Tensor, rope: tuple[Tensor, Tensor] | None, layout: BlockLayout | None, cells: bool = False
) -> Tensor | None:
    """Apply RMSNorm per head and the rotary embedding in place. Returns what a selection compares if a layout is given.

    x: [B, N, H, D]. weight: [D].
    rope: cosine and sine, each fp32 [N, D/2], in the order of the tokens, or None.
    layout: the block order in which the tokens are. The result is the mean of each block, fp32 [B, H, blocks, D], or
        with ``cells`` of each of its cells, [B, H, blocks, K, D], taken of x after rounding.
    """
    normed = F.rms_norm(x.float(), x.shape[-1:], eps=1e-6) * weight.float()
    if rope is not None:
        cos, sin = (part[:, None] for part in rope)
        even, odd = normed.unflatten(-1, (-1, 2)).unbind(-1)
        normed = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
    x.copy_(normed)
    return None if layout is None else pool_in_order(x, layout, cells)


def swiglu_(a: Tensor, b: Tensor, fp8: bool = False) -> Tensor | Quantised:
    """Compute ``silu(a) * b`` in place of a. With fp8, a is unchanged and the result is quantised from fp32."""
    out = F.silu(a.float()) * b.float()
    return quantise(out) if fp8 else a.copy_(out)


embed = embed_patches


def operations(
    device: torch.device, head_dim: int, backend: str = "auto", dtype: torch.dtype = torch.float32
) -> ModuleType | Any:
    """Choose what computes: `fused_triton` for "triton", and for "auto" on CUDA; `fused_cpu` for "auto" on a CPU;
    otherwise this module. dtype: of the products.

    Raises ValueError for "triton" if the kernels cannot take the head size.
    """
    import sys

    if backend not in ("auto", "torch", "triton"):
        raise ValueError(f"unknown backend {backend!r}; choose one of auto, torch, triton")
    possible = head_dim >= 16 and head_dim & (head_dim - 1) == 0
    if backend == "triton" and not possible:
        raise ValueError(f"the fused kernels take head sizes that are powers of two, not {head_dim}; use torch")
    if backend == "triton" or backend == "auto" and possible and device.type == "cuda":
        from pipeline.transformer import fused_triton

        return fused_triton
    if backend == "auto" and device.type == "cpu":
        from pipeline.transformer.fused_cpu import CpuOperations

        return CpuOperations(dtype)
    return sys.modules[__name__]
