"""The operations of `fused.py` for a CPU: in parts that stay in the caches, and with residuals in fp32.

Between matrix products these operations pass over all tokens many times in a block. A part of the tokens is still in a
core's cache at the next pass. Residuals in fp32 cost next to nothing; rounding them to bfloat16 at each of thirty
branches makes half of the distance between a forward in bfloat16 and one in fp32 (benchmarks/precision_cpu.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bsa import BlockLayout
from bsa.selection import pool_in_order
from pipeline.weights import Net
from pipeline.weights.fp8 import Quantised, quantise

PART_NUMBERS = 1 << 18  # of a tensor at one time: 1 MiB in fp32


@dataclass(frozen=True)
class CpuOperations:
    """The functions of `fused.py`, with the same arguments and results.

    dtype: of the products, and so of all that is not a residual.
    """

    dtype: torch.dtype

    quantise = staticmethod(quantise)

    def embed(self, patches: Tensor, proj: Net) -> Tensor:
        """See `forward.embed_patches`. In fp32, which is cheap here."""
        return F.linear(patches.float(), proj.weight.flatten(1).float(), proj.bias.float())

    def residual_norm_(
        self,
        x: Tensor,
        branch: Tensor | None,
        gate: Tensor | None,
        gain: Tensor | None,
        shift: Tensor | None,
        frames: Tensor | None,
        fp8: bool = False,
    ) -> Tensor | Quantised | None:
        """See `fused.residual_norm_`. x is fp32, the new tensor in the dtype of the products."""
        out = torch.empty(x.shape, dtype=torch.float32 if fp8 else self.dtype)
        for row in range(x.shape[0]):
            for part in _parts(x):
                some = x[row, part]
                if branch is not None:
                    added = branch[row, part].float()
                    some.add_(added) if gate is None else some.addcmul_(added, _of_tokens(gate, row, frames, part))
                if gain is not None and shift is not None:
                    weight, bias = (_of_tokens(rows, row, frames, part) for rows in (gain, shift))
                    if weight.ndim == 1:
                        out[row, part] = F.layer_norm(some, some.shape[-1:], weight, bias, eps=1e-6)
                    else:
                        out[row, part] = F.layer_norm(some, some.shape[-1:], eps=1e-6).mul_(weight).add_(bias)
        if gain is None:
            return None
        return quantise(out) if fp8 else out

    def head_norm_(
        self,
        x: Tensor,
        weight: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        layout: BlockLayout | None,
        cells: bool = False,
    ) -> Tensor | None:
        """See `fused.head_norm_`."""
        gain, rotation = weight.float(), None if rope is None else torch.complex(*rope)[:, None]  # [N, 1, D/2]
        for row in range(x.shape[0]):
            for part in _parts(x):
                some = x[row, part].float()
                mean_square = torch.linalg.vector_norm(some, dim=-1, keepdim=True).square_().div_(some.shape[-1])
                some = (some * mean_square.add_(1e-6).rsqrt_()).mul_(gain)
                if rotation is not None:
                    # pairs of neighbours are complex numbers, which a product rotates
                    torch.view_as_complex(some.unflatten(-1, (-1, 2))).mul_(rotation[part])
                x[row, part] = some
        return None if layout is None else pool_in_order(x, layout, cells)

    def swiglu_(self, a: Tensor, b: Tensor, fp8: bool = False) -> Tensor | Quantised:
        """See `fused.swiglu_`. In bfloat16 it also rounds between the two factors."""
        return quantise(F.silu(a.float()) * b.float()) if fp8 else F.silu(a, inplace=True).mul_(b)


def _of_tokens(rows: Tensor, row: int, frames: Tensor | None, part: slice) -> Tensor:
    """The row [E] of all tokens of a part, or [n, E] with that of each. rows: [B or 1, F or 1, E]."""
    mine = rows[row if rows.shape[0] > 1 else 0]
    return mine[0] if frames is None or len(mine) == 1 else mine[frames[part].long()]


def _parts(x: Tensor) -> Iterator[slice]:
    """Parts of the tokens of x [B, N, ...]."""
    at_once = max(1, PART_NUMBERS // x[0, 0].numel()) if x.numel() else 1
    for first in range(0, x.shape[1], at_once):
        yield slice(first, first + at_once)
