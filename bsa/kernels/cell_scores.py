"""The scores of `bsa.cells` in Triton: cells out of block order, and the masses of block pairs without a large matrix.

Two kernels take tiles of query cells of one head through all key cells: the first finds the denominator of every query
cell; the second sums the shares over the cells of each key block, by a product with zeros and ones that leaves them in
registers, and then over the cells of each query block. Products run on tensor cores in the inputs' precision; the sums
are fp32. One kernel for both was 15% slower on an H100.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bsa.cells import cells_of
from bsa.kernels.launch import on_device
from bsa.layout import BlockLayout

_ROWS = 64  # tokens per step of the pooling
# Query and key cells of a tile in half precision, the fastest of six and of eleven shapes on an H100.
DENOMINATOR_TILES, MASS_TILES = (64, 128), (128, 64)


@triton.jit(do_not_specialize=("heads", "blocks"))
def _pool_kernel(
    x_ptr, out_ptr, cells_ptr, sizes_ptr, starts_ptr, tokens_ptr, x_batch, x_head, x_token, heads, blocks, cells_stride,
    HEAD_DIM: tl.constexpr, DIM: tl.constexpr, CHUNK: tl.constexpr, CELLS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One program: one block of one head.

    x: [B, H, tokens, HEAD_DIM] by its strides; out: [BH, blocks, CELLS, HEAD_DIM], contiguous.
    """
    WIDE: tl.constexpr = CELLS if CELLS > 16 else 16  # what a product needs at least
    block, line = tl.program_id(0), tl.program_id(1).to(tl.int64)
    start, size = tl.load(starts_ptr + block).to(tl.int64), tl.load(tokens_ptr + block)
    dims, numbers = tl.arange(0, DIM), tl.arange(0, WIDE)
    total = tl.zeros([WIDE, DIM], tl.float32)
    x_ptr += (line // heads) * x_batch + (line % heads) * x_head + start * x_token
    for first in range(0, CHUNK, ROWS):
        rows = first + tl.arange(0, ROWS)
        cell = tl.load(cells_ptr + block * cells_stride + rows, mask=rows < CHUNK, other=-1)
        inside = (rows[:, None] < size) & (dims[None, :] < HEAD_DIM)
        x = tl.load(x_ptr + rows[:, None] * x_token + dims[None, :], mask=inside, other=0.0)
        total = tl.dot((numbers[:, None] == cell[None, :]).to(x.dtype), x, total, input_precision="ieee")
    sizes = tl.load(sizes_ptr + block * CELLS + numbers, mask=numbers < CELLS, other=0.0)
    mean = total / tl.maximum(sizes, 1.0)[:, None]
    out_ptr += (line * blocks + block) * CELLS * HEAD_DIM
    inside = (numbers[:, None] < CELLS) & (dims[None, :] < HEAD_DIM)
    tl.store(out_ptr + numbers[:, None] * HEAD_DIM + dims[None, :], mean.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _tile_scores(
    q, k_ptr, log_sizes_ptr, first, k_cells, scale_log2,
    HEAD_DIM: tl.constexpr, DIM: tl.constexpr, TILE: tl.constexpr, EVEN: tl.constexpr, WEIGH: tl.constexpr,
):  # fmt: skip
    """Logarithms to base 2 of size * exp(score), [queries, TILE]; -inf past the last key cell.

    EVEN: whole tiles fill the key cells, so no load needs a mask. WEIGH: cells differ in size; without, all count as 1.
    """
    rows, dims = first + tl.arange(0, TILE), tl.arange(0, DIM)
    if EVEN and HEAD_DIM == DIM:
        k = tl.load(k_ptr + rows[:, None] * HEAD_DIM + dims[None, :])
    else:
        inside = (rows[:, None] < k_cells) & (dims[None, :] < HEAD_DIM)
        k = tl.load(k_ptr + rows[:, None] * HEAD_DIM + dims[None, :], mask=inside, other=0.0)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
    if WEIGH:
        scores += tl.load(log_sizes_ptr + rows, mask=rows < k_cells, other=float("-inf"))[None, :]
    return scores


@triton.jit(do_not_specialize=("q_cells", "k_cells"))
def _denominator_kernel(
    q_ptr, k_ptr, out_ptr, log_sizes_ptr, votes_ptr, q_cells, k_cells, scale_log2,
    HEAD_DIM: tl.constexpr, DIM: tl.constexpr, TILE_Q: tl.constexpr, TILE_K: tl.constexpr,
    EVEN: tl.constexpr, WEIGH: tl.constexpr,
):  # fmt: skip
    """One program: TILE_Q query cells of one head.

    out: fp32 [BH, q_cells], the logarithm to base 2 of the denominator over the cell's votes: one subtraction for both.
    """
    line = tl.program_id(1).to(tl.int64)
    rows, dims = tl.program_id(0) * TILE_Q + tl.arange(0, TILE_Q), tl.arange(0, DIM)
    inside = (rows[:, None] < q_cells) & (dims[None, :] < HEAD_DIM)
    q = tl.load(q_ptr + (line * q_cells + rows[:, None]) * HEAD_DIM + dims[None, :], mask=inside, other=0.0)
    k_ptr += line * k_cells * HEAD_DIM
    row_max = tl.full([TILE_Q], float("-inf"), tl.float32)
    row_sum = tl.zeros([TILE_Q], tl.float32)
    for first in range(0, k_cells, TILE_K):
        scores = _tile_scores(
            q, k_ptr, log_sizes_ptr, first, k_cells, scale_log2, HEAD_DIM, DIM, TILE_K, EVEN, WEIGH
        )
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        row_sum = row_sum * tl.exp2(row_max - new_max) + tl.sum(tl.exp2(scores - new_max[:, None]), 1)
        row_max = new_max
    votes = tl.load(votes_ptr + rows, mask=rows < q_cells, other=0.0)
    tl.store(out_ptr + line * q_cells + rows, row_max + tl.log2(row_sum) - tl.log2(votes), mask=rows < q_cells)


@triton.jit(do_not_specialize=("q_blocks", "k_blocks"))
def _mass_kernel(
    q_ptr, k_ptr, out_ptr, log_sizes_ptr, offsets_ptr, q_blocks, k_blocks, scale_log2,
    HEAD_DIM: tl.constexpr, DIM: tl.constexpr, CELLS_Q: tl.constexpr, CELLS_K: tl.constexpr,
    TILE_Q: tl.constexpr, TILE_K: tl.constexpr, EVEN: tl.constexpr, WEIGH: tl.constexpr,
):  # fmt: skip
    """One program: TILE_Q query cells of one head against all key cells. out: fp32 [BH, q_blocks, k_blocks]."""
    BLOCKS_Q: tl.constexpr = TILE_Q // CELLS_Q
    BLOCKS_K: tl.constexpr = TILE_K // CELLS_K
    WIDE: tl.constexpr = BLOCKS_K if BLOCKS_K > 16 else 16  # what a product needs at least
    q_cells, k_cells = q_blocks * CELLS_Q, k_blocks * CELLS_K
    line = tl.program_id(1).to(tl.int64)
    rows, dims = tl.program_id(0) * TILE_Q + tl.arange(0, TILE_Q), tl.arange(0, DIM)
    inside = (rows[:, None] < q_cells) & (dims[None, :] < HEAD_DIM)
    q = tl.load(q_ptr + (line * q_cells + rows[:, None]) * HEAD_DIM + dims[None, :], mask=inside, other=0.0)
    offsets = tl.load(offsets_ptr + line * q_cells + rows, mask=rows < q_cells, other=float("inf"))
    k_ptr += line * k_cells * HEAD_DIM
    out_ptr += line * q_blocks * k_blocks
    blocks_q, numbers = tl.program_id(0) * BLOCKS_Q + tl.arange(0, BLOCKS_Q), tl.arange(0, WIDE)
    # [TILE_K, WIDE]: 1 where a cell belongs to a block
    member = ((tl.arange(0, TILE_K) // CELLS_K)[:, None] == numbers[None, :]).to(q.dtype)
    for first in range(0, k_cells, TILE_K):
        scores = _tile_scores(
            q, k_ptr, log_sizes_ptr, first, k_cells, scale_log2, HEAD_DIM, DIM, TILE_K, EVEN, WEIGH
        )
        mass = tl.exp2(scores - offsets[:, None]).to(q.dtype)
        mass = tl.dot(mass, member, input_precision="ieee")
        mass = tl.sum(tl.reshape(mass, [BLOCKS_Q, CELLS_Q, WIDE]), 1)
        blocks_k = first // CELLS_K + numbers
        within = (blocks_q[:, None] < q_blocks) & (numbers[None, :] < BLOCKS_K) & (blocks_k[None, :] < k_blocks)
        tl.store(out_ptr + blocks_q[:, None] * k_blocks + blocks_k[None, :], mass, mask=within)


def pool_cells_in_order(x: Tensor, layout: BlockLayout) -> Tensor:
    """Means of the cells of x, [B, H, S, D] in block order by any strides with unit stride in the last place.

    Returns [B, H, N, K, D] in x's dtype, contiguous: `bsa.cells.pool_cells` without the copy in blocks.
    """
    (batch, heads, _, dim), device, blocks, chunk = x.shape, x.device, layout.blocks.volume, layout.chunk.volume
    cells = cells_of(layout, device)
    count, table = cells.sizes.shape[1], cells.cell_of_slot
    out = torch.empty(batch, heads, blocks, count, dim, dtype=x.dtype, device=device)
    with on_device(x):
        _pool_kernel[(blocks, batch * heads)](
            x, out, table, cells.sizes, layout.starts(device), layout.sizes(device), *x.stride()[:3], heads, blocks,
            table.stride(0) if len(table) > 1 else 0,
            HEAD_DIM=dim, DIM=max(16, triton.next_power_of_2(dim)), CHUNK=chunk, CELLS=count,
            ROWS=min(_ROWS, max(16, triton.next_power_of_2(chunk))), num_warps=4,
        )  # fmt: skip
    return out


def cell_masses(
    q_cells: Tensor, k_cells: Tensor, q_layout: BlockLayout, k_layout: BlockLayout, scale: float
) -> Tensor:
    """Estimated masses of all block pairs, fp32 [B, H, NQ, NK]; each row sums to 1. `bsa.cells.cell_scores` has their
    logarithms. q_cells and k_cells: [B, H, N, K, D], contiguous; scale > 0."""
    (batch, heads, q_blocks, per_q, dim), (k_blocks, per_k) = q_cells.shape, k_cells.shape[2:4]
    device = q_cells.device
    cells = cells_of(k_layout, device)
    log_sizes, different, votes = cells.log2_sizes, not cells.alike, cells_of(q_layout, device).votes
    out = torch.empty(batch, heads, q_blocks, k_blocks, dtype=torch.float32, device=device)
    offsets = torch.empty(batch * heads, q_blocks * per_q, dtype=torch.float32, device=device)
    half, lines, scale_log2 = q_cells.dtype.itemsize < 4, batch * heads, scale * math.log2(math.e)
    dims: dict[str, Any] = {"HEAD_DIM": dim, "DIM": max(16, triton.next_power_of_2(dim))}

    def kind(tile: int) -> dict[str, bool]:
        even = (k_blocks * per_k) % tile == 0
        return {"EVEN": even, "WEIGH": not even or different}

    # fp32 products are unrolled, and their tiles must fit into registers
    (tile_q, tile_k), warps = (DENOMINATOR_TILES, 4) if half else ((32, 32), 4)
    with on_device(q_cells):
        _denominator_kernel[(triton.cdiv(q_blocks * per_q, tile_q), lines)](
            q_cells, k_cells, offsets, log_sizes, votes, q_blocks * per_q, k_blocks * per_k, scale_log2,
            **dims, TILE_Q=tile_q, TILE_K=tile_k, **kind(tile_k), num_warps=warps, num_stages=3,
        )  # fmt: skip
        (tile_q, tile_k), warps = (MASS_TILES, 8) if half else ((32, 32), 4)
        tile_q, tile_k = max(tile_q, per_q), max(tile_k, per_k)
        _mass_kernel[(triton.cdiv(q_blocks * per_q, tile_q), lines)](
            q_cells, k_cells, out, log_sizes, offsets, q_blocks, k_blocks, scale_log2,
            **dims, CELLS_Q=per_q, CELLS_K=per_k, TILE_Q=tile_q, TILE_K=tile_k, **kind(tile_k),
            num_warps=warps, num_stages=3,
        )  # fmt: skip
    return out
