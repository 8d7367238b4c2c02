"""The elementwise work of a LongCat block as four functions, in PyTorch; `fused_triton.py` has them as kernels.

Both compute in fp32 and round once. The kernels exist because these few operations, one PyTorch kernel each, take
longer on a fast GPU than the matrix products. Shape letters as in `forward.py`; F frames, H heads.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bsa import BlockLayout
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
    """``x += gate * branch`` in place, then ``layer_norm(x) * gain + shift`` as a new tensor.

    x, branch [B, N, E]; no branch leaves x as it is, no gate means 1. gate fp32 [B, F, E]; gain and shift fp32
    [B or 1, F or 1, E] with the same strides, without them nothing is returned; unit stride in the last place.
    frames int32 [N]: which of the F rows each token takes; None where there is one.
    fp8: the new tensor quantised, from its fp32 values.
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
    x: Tensor, weight: Tensor, rope: tuple[Tensor, Tensor] | None, layout: BlockLayout | None
) -> Tensor | None:
    """RMSNorm per head and rotary embedding, in place; returns the block means where a layout is given.

    x [B, N, H, D]; weight [D]; rope: cosine and sine, each fp32 [N, D/2], in the order of the tokens, or None.
    layout: the tokens are in its block order; the result is fp32 [B, H, blocks, D], of x as it was rounded.
    """
    normed = F.rms_norm(x.float(), x.shape[-1:], eps=1e-6) * weight.float()
    if rope is not None:
        cos, sin = (part[:, None] for part in rope)
        even, odd = normed.unflatten(-1, (-1, 2)).unbind(-1)
        normed = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
    x.copy_(normed)
    return None if layout is None else layout.pool(layout.blocks_from_order(x))


def swiglu_(a: Tensor, b: Tensor, fp8: bool = False) -> Tensor | Quantised:
    """``silu(a) * b``, written into a; with fp8 a stays as it is and the result is quantised from fp32."""
    out = F.silu(a.float()) * b.float()
    return quantise(out) if fp8 else a.copy_(out)


def operations(device: torch.device, head_dim: int, backend: str = "auto") -> ModuleType | Any:
    """The module to call: this one, or `fused_triton` on CUDA ("auto") or where it is named ("triton").

    Raises ValueError for a head size that the kernels cannot take, when they are named.
    """
    import sys

    if backend not in ("auto", "torch", "triton"):
        raise ValueError(f"unknown backend {backend!r}; choose one of auto, torch, triton")
    possible = head_dim >= 16 and head_dim & (head_dim - 1) == 0
    if backend == "triton" and not possible:
        raise ValueError(f"the fused kernels take head sizes that are powers of two, not {head_dim}; use torch")
    if backend == "triton" or backend == "auto" and possible and device.type == "cuda":
        from pipeline.model import fused_triton

        return fused_triton
    return sys.modules[__name__]
