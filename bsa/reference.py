"""The definition: dense attention with the token mask that follows from a selection.

It takes S x S memory per head, so it is meant for small grids and for tests of the other backends.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bsa.block_selection import BlockSelection
from bsa.layout import BlockLayout


def masked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    selection: BlockSelection,
    q_layout: BlockLayout,
    k_layout: BlockLayout,
    scale: float,
) -> Tensor:
    """Masked attention. q, k, v: [B, H, S, D] in raster order.

    Computes in fp32 (fp64 inputs in fp64). Returns [B, H, S, D] in q's dtype.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    mask = selection.mask(k_layout.blocks.volume)
    mask = mask.index_select(2, q_layout.block_of_token(q.device))
    mask = mask.index_select(3, k_layout.block_of_token(q.device))
    scores = scale * (q.to(dtype) @ k.to(dtype).mT)
    return (scores.masked_fill(~mask, float("-inf")).softmax(dim=-1) @ v.to(dtype)).to(q.dtype)
