"""Top-k of each query block's scores, with one program of a Triton kernel per row and without sorting.

The k-th largest score is found bit by bit: the program counts 32 times how many scores reach a trial value. Then it
collects the chosen columns from the left, so the list is ascending, with the smaller blocks at the edge behind the full
ones. Scores are fp32 and their order is exact; ties go to the lower block number.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bsa.block_selection import BlockSelection
from bsa.kernels.cell_scores import cell_masses
from bsa.kernels.launch import on_device
from bsa.layout import BlockLayout

MAX_KEY_BLOCKS = 16384  # one row must fit into one program's registers
# Scores held at one time. More would gain nothing, and long videos would need gigabytes.
_SCORE_BYTES = 256 << 20


@triton.jit
def _kth_largest(keys, kept):
    """The largest value that at least ``kept`` of the int32 ``keys`` reach."""
    reached = tl.sum((keys >= 0).to(tl.int32), 0) >= kept
    # first the sign, then bit by bit from the top
    threshold = tl.where(reached, 0, -2147483648)
    for bit in range(31):
        trial = threshold + (1 << (30 - bit))
        reached = tl.sum((keys >= trial).to(tl.int32), 0) >= kept
        threshold = tl.where(reached, trial, threshold)
    return threshold


@triton.jit
def _top_k_kernel(
    scores_ptr, log_sizes_ptr, cut_ptr, indices_ptr, whole_counts_ptr, columns, kept, scale,
    COLUMNS: tl.constexpr, RAGGED: tl.constexpr, WEIGH: tl.constexpr,
):  # fmt: skip
    """Each program turns one row of scores [rows, columns] into one row of indices [rows, kept]."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    inside = column < columns
    score = tl.load(scores_ptr + row * columns + column, mask=inside, other=0.0) * scale
    if WEIGH:
        score += tl.load(log_sizes_ptr + column, mask=inside, other=0.0)
    # signed integers in the same order as the floats: the magnitude bits of negative floats are flipped
    bits = score.to(tl.int32, bitcast=True)
    keys = tl.where(inside, bits ^ ((bits >> 31) & 0x7FFFFFFF), -2147483648)
    threshold = _kth_largest(keys, kept)
    above = keys > threshold
    tied = (keys == threshold) & inside
    ties_kept = kept - tl.sum(above.to(tl.int32), 0)
    chosen = above | (tied & (tl.cumsum(tied.to(tl.int32), 0) <= ties_kept))
    if RAGGED:
        cut = tl.load(cut_ptr + column, mask=inside, other=0) != 0
        whole = chosen & (cut == 0)
        whole_count = tl.sum(whole.to(tl.int32), 0)
        place = tl.where(
            whole, tl.cumsum(whole.to(tl.int32), 0), whole_count + tl.cumsum((chosen & cut).to(tl.int32), 0)
        )
        tl.store(whole_counts_ptr + row, whole_count)
    else:
        place = tl.cumsum(chosen.to(tl.int32), 0)
    tl.store(indices_ptr + row * kept + place - 1, column, mask=chosen)


def top_k_blocks(
    q_pooled: Tensor, k_pooled: Tensor, q_layout: BlockLayout, k_layout: BlockLayout, kept: int, scale: float
) -> BlockSelection:
    """Select the `kept` best key blocks of every query block. Returns a `BlockSelection` with ``whole_counts``.

    q_pooled, k_pooled: the means of the blocks, fp32 [B, H, N, D], or of their cells, [B, H, N, K, D].
    scale: factor on the scores, positive.

    Raises ValueError for more than MAX_KEY_BLOCKS key blocks.
    """
    batch, heads, q_blocks = q_pooled.shape[:3]
    k_blocks, by_cells = k_pooled.shape[2], q_pooled.ndim == 5
    if k_blocks > MAX_KEY_BLOCKS:
        raise ValueError(
            f"the fused top-k takes at most {MAX_KEY_BLOCKS} key blocks, the grid {k_layout.grid} has {k_blocks}; "
            "use larger chunks or leave fused off"
        )
    device, sizes = q_pooled.device, k_layout.sizes(q_pooled.device)
    q_pooled, k_pooled = q_pooled.flatten(0, 1), k_pooled.flatten(0, 1)
    indices = torch.empty(len(q_pooled), q_blocks, kept, dtype=torch.int32, device=device)
    counts = torch.full(indices.shape[:2], kept, dtype=torch.int32, device=device)
    whole_counts = torch.empty_like(counts) if k_layout.ragged else counts
    log_sizes, cut = sizes.float().log(), (sizes < k_layout.chunk.volume).int()
    columns = triton.next_power_of_2(k_blocks)
    at_once = max(1, _SCORE_BYTES // (4 * q_blocks * k_blocks))
    with on_device(q_pooled):
        for first in range(0, len(q_pooled), at_once):
            part = slice(first, first + at_once)
            if by_cells:  # masses, which know the sizes of the blocks
                scores = cell_masses(q_pooled[None, part], k_pooled[None, part], q_layout, k_layout, scale)[0]
            else:
                scores = q_pooled[part] @ k_pooled[part].mT
            # One warp for a row of 2,048 needs no barriers, but was a quarter slower on an H100: too few registers.
            _top_k_kernel[(scores.shape[0] * q_blocks,)](
                scores, log_sizes, cut, indices[part], whole_counts[part], k_blocks, kept, scale,
                COLUMNS=columns, RAGGED=k_layout.ragged, WEIGH=k_layout.ragged and not by_cells,
                num_warps=min(16, max(1, columns // 512)),
            )  # fmt: skip
    shape = (batch, heads)
    return BlockSelection(indices.unflatten(0, shape), counts.unflatten(0, shape), whole_counts.unflatten(0, shape))
