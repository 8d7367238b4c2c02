"""Scores of block pairs from cells: small boxes of tokens inside the blocks, compared one by one.

A block of 4x4x4 tokens is eight cells of 2x2x2. The mean of 64 tokens hides the few that a query is looking for; the
mean of 8 hides much less, and comparing cells costs a 64th of comparing tokens. For a query cell a and a key cell b
with means q_a and k_b and |b| tokens, the estimated attention of a on b is

    p(a, b) = |b| exp(scale q_a . k_b) / sum over all key cells c of |c| exp(scale q_a . k_c)

and the mass of a block pair is the mean of sum_b p(a, b) over the block's query cells, weighted by their tokens. Every
query cell has one vote: without the denominator the few with long vectors would choose for all.

Scoring parts of a block is known from DFSAttn (arXiv 2605.23445) and SGLang's sub-block router; docs/quality.md has
what this form of it gains here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from bsa.grid import CELL
from bsa.layout import BlockLayout

# Scores held at one time: what stays in a processor's cache, and what a GPU can spare.
_STEP_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}


@dataclass(frozen=True, slots=True)
class Cells:
    """The cells of all blocks of one layout.

    K is the number of cells of a whole block, rounded up to a power of two; cells outside the grid have size 0.
    sizes: tokens of each cell, fp32 [N, K]; log2_sizes: its logarithm, -inf for 0.
    votes: share of each cell in its block's tokens, fp32 [N, K].
    weights: weight of each token in its cell's mean, fp32 [N or 1, K, C].
    cell_of_slot: cell of each token, int32 [N or 1, C]; -1 for padding.
    alike: whether all cells have one size.
    """

    sizes: Tensor
    log2_sizes: Tensor
    votes: Tensor
    weights: Tensor
    cell_of_slot: Tensor
    alike: bool


def pool_cells(x: Tensor, layout: BlockLayout) -> Tensor:
    """Mean over each cell's tokens, block-major [B, H, N, C, D] to [B, H, N, K, D], in fp32 (fp64 stays fp64); zeros
    for a cell outside the grid."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return cells_of(layout, x.device).weights.to(dtype) @ x.to(dtype)


def cell_scores(q_cells: Tensor, k_cells: Tensor, q_layout: BlockLayout, k_layout: BlockLayout, scale: float) -> Tensor:
    """Logarithms of the estimated masses, [B, H, NQ, NK]; each row's masses sum to 1.

    q_cells [B, H, NQ, K, D] and k_cells [B, H, NK, K', D] from `pool_cells`. Never holds more than a part of the scores
    of all cells.
    """
    (batch, heads, q_blocks, per_q), (k_blocks, per_k) = q_cells.shape[:4], k_cells.shape[2:4]
    dtype = torch.promote_types(q_cells.dtype, torch.float32)
    q_cells, k_cells, device = q_cells.to(dtype), k_cells.to(dtype), q_cells.device
    log_sizes = cells_of(k_layout, device).sizes.to(dtype).log().flatten()  # -inf for a cell outside the grid
    votes = cells_of(q_layout, device).votes.to(dtype)
    keys = k_cells.flatten(2, 3).mT
    out = q_cells.new_empty(batch, heads, q_blocks, k_blocks)
    row_bytes = batch * heads * per_q * k_blocks * per_k * q_cells.element_size()
    rows = max(1, _STEP_BYTES.get(device.type, _STEP_BYTES["cuda"]) // row_bytes)
    for first in range(0, q_blocks, rows):
        part = slice(first, first + rows)
        scores = torch.matmul(q_cells[:, :, part].flatten(2, 3) * scale, keys)
        mass = scores.add_(log_sizes).softmax(-1).unflatten(-1, (k_blocks, per_k)).sum(-1)
        mass = mass.unflatten(2, (-1, per_q))  # [B, H, rows, K, NK]
        out[:, :, part] = (votes[part, None] @ mass)[..., 0, :]
    # What underflows stays finite, and last in every ranking.
    return out.clamp_min_(torch.finfo(dtype).tiny).log_()


@lru_cache(maxsize=64)
def cells_of(layout: BlockLayout, device: torch.device) -> Cells:
    """The cells of a layout. Shared: do not write to it."""
    with torch.inference_mode(False), torch.no_grad():
        chunk, per_axis = layout.chunk, layout.chunk.blocks(CELL)
        token = layout.token_of_slot(torch.device("cpu")).view(-1, chunk.volume)  # [N, C]
        rows, columns = layout.grid.h, layout.grid.w
        t, h, w = token // (rows * columns), token // columns % rows, token % columns
        t = torch.where(t < layout.lead, t, t - layout.lead)
        places = [(place % step) // cell for place, step, cell in zip((t, h, w), chunk, CELL, strict=True)]
        cell = (places[0] * per_axis.h + places[1]) * per_axis.w + places[2]
        real = torch.arange(chunk.volume) < layout.sizes(torch.device("cpu"))[:, None]
        cell = cell.where(real, -1)
        count = 1 << (per_axis.volume - 1).bit_length()
        inside = cell[:, None] == torch.arange(count)[:, None]  # [N, K, C]
        sizes = inside.sum(-1).float()
        weights = inside / sizes.clamp_min(1)[..., None]
        different = slice(None) if layout.ragged else slice(1)
        return Cells(
            sizes=sizes.to(device),
            log2_sizes=sizes.log2().to(device),
            votes=(sizes / sizes.sum(-1, keepdim=True)).to(device),
            weights=weights[different].to(device),
            cell_of_slot=cell[different].int().to(device),
            alike=bool((sizes == sizes[0, 0]).all()),
        )
