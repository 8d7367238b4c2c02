"""Selects the key blocks that each query block attends to.

Blocks are ranked by their estimated attention mass. By default the score of a block pair is the dot product of the mean
query and the mean key, in fp32, and its mass is size * exp(scale * score), size being the key block's true token count.
On a grid that the chunks divide, sizes are equal and this is LongCat-Video's ranking (arXiv 2510.22200, appendix A.2).
With ``selection="cells"`` the mass is estimated from smaller boxes inside the blocks: see `bsa.cells`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from bsa.block_selection import BlockSelection
from bsa.cells import cell_scores, pool_cells
from bsa.config import BSAConfig
from bsa.layout import BlockLayout
from bsa.selectors import Selector


@torch.no_grad()
def select_blocks(
    q_blocks: Tensor, k_blocks: Tensor, q_layout: BlockLayout, k_layout: BlockLayout, config: BSAConfig, scale: float
) -> BlockSelection:
    """Rank key blocks by estimated mass, and keep as many as ``config`` says.

    q_blocks, k_blocks: block-major queries and keys, [B, H, N, C, D]. scale: factor on q @ k.
    Pure top-k does not wait for the device, and all its counts are the same.
    """
    with without_autocast(q_blocks.device):
        pooled = pool(q_blocks, q_layout, config), pool(k_blocks, k_layout, config)
        return select_pooled(*pooled, q_layout, k_layout, config, scale)


def pool(x: Tensor, layout: BlockLayout, config: BSAConfig) -> Tensor:
    """The means that a selection compares, from block-major queries or keys [B, H, N, C, D], in fp32.

    Returns the means of the blocks, [B, H, N, D], or of their cells, [B, H, N, K, D].
    """
    return pool_cells(x, layout) if config.selector.by_cells else layout.pool(x)


def pool_in_order(x: Tensor, layout: BlockLayout, cells: bool) -> Tensor:
    """The same for x [B, S, H, D] in the layout's order."""
    blocks = layout.blocks_from_order(x)
    return pool_cells(blocks, layout) if cells else layout.pool(blocks)


@torch.no_grad()
def select_pooled(
    q_pooled: Tensor,
    k_pooled: Tensor,
    q_layout: BlockLayout,
    k_layout: BlockLayout,
    config: BSAConfig,
    scale: float,
    *,
    fused: bool = False,
) -> BlockSelection:
    """`select_blocks` from what `pool` returned.

    fused: pick the top k with one Triton kernel. It writes the lists in the order that the attention kernels need, and
        never holds more than a part of the score matrix. Ties then go to the lower block number. If it cannot be used
        (with a threshold, a score that it does not know, or more than `MAX_KEY_BLOCKS` key blocks), the rows are sorted
        instead.
    """
    with without_autocast(q_pooled.device):
        selector, key_blocks = config.selector, k_pooled.shape[2]
        if fused and selector.uniform and (selector.by_means or selector.by_cells):
            from bsa.kernels.top_k import MAX_KEY_BLOCKS, top_k_blocks

            if key_blocks <= MAX_KEY_BLOCKS:
                return top_k_blocks(q_pooled, k_pooled, q_layout, k_layout, selector.least(key_blocks), scale)
        if selector.by_cells:
            return _best(cell_scores(q_pooled, k_pooled, q_layout, k_layout, scale), selector)
        logits = scale * (q_pooled @ k_pooled.mT)
        if k_layout.ragged:
            logits += k_layout.sizes(logits.device).log()
        return _best(logits, selector)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A block without autocast, which would silently round fp32 products to half precision."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def _best(logits: Tensor, selector: Selector) -> BlockSelection:
    """The key blocks that the selector keeps. logits: logarithms of the estimated masses, [..., NQ, NK]."""
    least = selector.least(logits.shape[-1])
    return _top_k(logits, least) if selector.uniform else _cumulative_mass(logits, selector.mass, least)


def _top_k(logits: Tensor, kept: int) -> BlockSelection:
    indices = logits.topk(kept, dim=-1, sorted=False).indices.sort(dim=-1).values
    counts = torch.full(logits.shape[:-1], kept, dtype=torch.int32, device=logits.device)
    return BlockSelection(indices.int(), counts)


def _cumulative_mass(logits: Tensor, threshold: float, min_kept: int) -> BlockSelection:
    mass, ranked = logits.softmax(dim=-1).sort(dim=-1, descending=True)
    # Masses are summed from the smallest up, so that rounding does not lose a threshold near 1. A block is kept while
    # the blocks before it fall short of the threshold, which means that it and all later ones exceed the rest.
    tail = mass.flip(-1).cumsum(-1).flip(-1)
    counts = (tail > 1 - threshold).sum(-1).clamp_(min=min_kept)
    key_blocks = logits.shape[-1]
    dropped = torch.arange(key_blocks, device=logits.device) >= counts[..., None]
    indices = ranked.masked_fill(dropped, key_blocks).sort(dim=-1).values.clamp_(max=key_blocks - 1)
    return BlockSelection(indices.int(), counts.int())
