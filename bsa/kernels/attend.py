"""Attention over selected blocks: puts the index lists into the order that the kernels need, and runs a kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from bsa.block_selection import BlockSelection
from bsa.kernels.launch import on_device
from bsa.kernels.pointers import attend_with_pointers
from bsa.layout import BlockLayout
from bsa.variants import BASELINE, DESCRIPTORS, SMALL_BLOCKS, EightBits, Variant


def attend_tokens(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    selection: BlockSelection,
    q_layout: BlockLayout,
    k_layout: BlockLayout,
    scale: float,
    out: Tensor,
    *,
    variant: Variant | EightBits | None = None,
) -> None:
    """Compute attention into ``out``.

    q, k, v, out: [B, H, S, D] in block order, unit stride in the last axis, any other strides. D is 16 to 256 in bf16,
        fp16 or fp32.
    scale: factor on q @ k, positive.
    variant: the kernel and its tiles; None for the baseline. Raises ValueError if it cannot take these tensors.
    """
    selection = whole_blocks_first(selection, k_layout)
    if isinstance(variant, EightBits):
        from bsa.kernels.eight_bits import attend_in_8_bits

        attend_in_8_bits(q, k, v, selection, q_layout, k_layout, scale, out, variant=variant)
        return
    variant = variant or BASELINE
    if variant.kernel == DESCRIPTORS:
        from bsa.kernels.descriptors import attend_with_descriptors as run
    elif variant.kernel == SMALL_BLOCKS:
        from bsa.kernels.small_blocks import attend_small_blocks as run
    else:
        run = attend_with_pointers
    # Looked up here once, so that the kernels' loads of keys depend on one load before them and not on two.
    first_tokens = k_layout.starts(q.device)[selection.indices] if k_layout.ragged else selection.indices
    with on_device(q):
        run(q, k, v, selection, first_tokens, q_layout, k_layout, scale, out, variant)


def whole_blocks_first(selection: BlockSelection, k_layout: BlockLayout) -> BlockSelection:
    """Move the smaller blocks at the edge behind the full ones, so that the main loop needs no mask."""
    if selection.whole_counts is not None:
        return selection
    indices, counts = selection.indices.contiguous(), selection.counts.contiguous()
    if not k_layout.ragged:
        return BlockSelection(indices, counts, counts)
    unused = torch.arange(indices.shape[-1], device=indices.device) >= counts[..., None]
    whole = (k_layout.sizes(indices.device)[indices] == k_layout.chunk.volume) & ~unused
    rank = torch.where(whole, 0, 1) + unused
    indices = indices.gather(-1, rank.argsort(dim=-1, stable=True))
    return BlockSelection(indices, counts, whole.sum(-1, dtype=torch.int32))
