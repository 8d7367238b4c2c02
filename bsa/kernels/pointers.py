"""Triton forward kernel: flash attention over a list of key blocks per query block.

For a query tile Q and the kept key tiles K_j, V_j, with s = scale * log2(e), one pass keeps

    m' = max(m, rowmax(s Q K_j^T))        P = 2^(s Q K_j^T - m')
    l' = 2^(m - m') l + rowsum(P)         A' = 2^(m - m') A + P V_j

and writes A / l at the end (online softmax, arXiv 2205.14135). All sums are in fp32. The code uses only features that
Triton 3.6 to 3.9 share: plain pointers, no block pointers.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from bsa.block_selection import BlockSelection
from bsa.kernels.launch import launch_options, shared_memory
from bsa.kernels.primitives import SIZES, first_token, online_softmax_update, store_output
from bsa.layout import BlockLayout
from bsa.variants import Variant


@triton.jit
def _attend_range(
    acc, row_max, row_sum, q, k_head, v_head, row_indices, row_tokens, sizes, first, last, scale_log2,
    K_TOKEN: tl.constexpr, V_TOKEN: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, CHUNK: tl.constexpr,
    TILE: tl.constexpr, REGULAR: tl.constexpr, RAGGED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend to entries first..last of one row of the index list. RAGGED: read each block's size; else all are full."""
    TILES: tl.constexpr = (CHUNK + TILE - 1) // TILE
    WHOLE_TILES: tl.constexpr = CHUNK % TILE == 0
    rows = tl.arange(0, TILE)
    dims = tl.arange(0, DIM)
    for step in range(first * TILES, last * TILES):
        start = (step % TILES) * TILE
        token = first_token(row_tokens, step // TILES, CHUNK, REGULAR).to(tl.int64) + start
        # [TILE, DIM]
        k_tile = k_head + token * K_TOKEN + rows[:, None] * K_TOKEN + dims[None, :]
        v_tile = v_head + token * V_TOKEN + rows[:, None] * V_TOKEN + dims[None, :]
        if RAGGED:
            size = tl.load(sizes + tl.load(row_indices + step // TILES))
            inside = (start + rows[:, None] < size) & (dims[None, :] < HEAD_DIM)
            k = tl.load(k_tile, mask=inside, other=0.0)
            v = tl.load(v_tile, mask=inside, other=0.0)
        elif WHOLE_TILES and HEAD_DIM == DIM:
            k = tl.load(k_tile)
            v = tl.load(v_tile)
        else:
            inside = (start + rows[:, None] < CHUNK) & (dims[None, :] < HEAD_DIM)
            k = tl.load(k_tile, mask=inside, other=0.0)
            v = tl.load(v_tile, mask=inside, other=0.0)
        # [TILE_Q, TILE]
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if RAGGED:
            scores = tl.where(start + rows[None, :] < size, scores, float("-inf"))
        elif not WHOLE_TILES:
            scores = tl.where(start + rows[None, :] < CHUNK, scores, float("-inf"))
        acc, row_max, row_sum = online_softmax_update(acc, row_max, row_sum, scores, v, scale_log2, PRECISION)
    return acc, row_max, row_sum


@triton.jit(do_not_specialize=SIZES)
def _attend_blocks_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, indices_ptr, first_tokens_ptr, whole_counts_ptr, counts_ptr,
    q_starts_ptr, q_sizes_ptr, k_sizes_ptr,
    q_batch, q_head, k_batch, k_head, v_batch, v_head, out_batch, out_head, heads, q_blocks, width, scale_log2,
    Q_TOKEN: tl.constexpr, K_TOKEN: tl.constexpr, V_TOKEN: tl.constexpr, OUT_TOKEN: tl.constexpr,
    HEAD_DIM: tl.constexpr, DIM: tl.constexpr, CHUNK_Q: tl.constexpr, CHUNK_K: tl.constexpr,
    TILE_Q: tl.constexpr, TILE_K: tl.constexpr, REGULAR: tl.constexpr, RAGGED_Q: tl.constexpr, RAGGED_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Each program handles TILE_Q queries of one query block of one head, with that block's list of key blocks.

    q, k, v, out: [B, H, tokens, HEAD_DIM], any strides except unit stride in the last axis.
    indices: [BH, q_blocks, width], full key blocks first; whole_counts and counts: [BH, q_blocks].
    REGULAR: all key blocks are full, so that block n begins at token n * CHUNK; otherwise first_tokens has the first
    token of every listed block.
    """
    TILES_Q: tl.constexpr = (CHUNK_Q + TILE_Q - 1) // TILE_Q
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    q_block = tl.program_id(0) // TILES_Q
    start = (tl.program_id(0) % TILES_Q) * TILE_Q
    row = tl.program_id(1).to(tl.int64) * q_blocks + q_block

    q_size = CHUNK_Q
    if RAGGED_Q:
        q_size = tl.load(q_sizes_ptr + q_block)
    if start >= q_size:
        return

    rows = start + tl.arange(0, TILE_Q)
    dims = tl.arange(0, DIM)
    token = (tl.load(q_starts_ptr + q_block) if RAGGED_Q else q_block * CHUNK_Q).to(tl.int64)
    # [TILE_Q, DIM]
    inside = (rows[:, None] < q_size) & (dims[None, :] < HEAD_DIM)
    q_tile = q_ptr + batch * q_batch + head * q_head + token * Q_TOKEN + rows[:, None] * Q_TOKEN + dims[None, :]
    q = tl.load(q_tile, mask=inside, other=0.0)

    acc = tl.zeros([TILE_Q, DIM], tl.float32)
    row_max = tl.full([TILE_Q], float("-inf"), tl.float32)
    row_sum = tl.zeros([TILE_Q], tl.float32)
    k_ptr += batch * k_batch + head * k_head
    v_ptr += batch * v_batch + head * v_head
    row_indices, row_tokens = indices_ptr + row * width, first_tokens_ptr + row * width
    whole = tl.load(whole_counts_ptr + row)
    acc, row_max, row_sum = _attend_range(
        acc, row_max, row_sum, q, k_ptr, v_ptr, row_indices, row_tokens, k_sizes_ptr, 0, whole, scale_log2,
        K_TOKEN, V_TOKEN, HEAD_DIM, DIM, CHUNK_K, TILE_K, REGULAR, False, PRECISION,
    )  # fmt: skip
    if RAGGED_K:
        acc, row_max, row_sum = _attend_range(
            acc, row_max, row_sum, q, k_ptr, v_ptr, row_indices, row_tokens, k_sizes_ptr, whole,
            tl.load(counts_ptr + row), scale_log2,
            K_TOKEN, V_TOKEN, HEAD_DIM, DIM, CHUNK_K, TILE_K, REGULAR, True, PRECISION,
        )  # fmt: skip

    out_tile = out_ptr + batch * out_batch + head * out_head + token * OUT_TOKEN
    out_tile += rows[:, None] * OUT_TOKEN + dims[None, :]
    store_output(out_tile, acc, row_sum, inside)


def attend_with_pointers(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    selection: BlockSelection,
    first_tokens: Tensor,
    q_layout: BlockLayout,
    k_layout: BlockLayout,
    scale: float,
    out: Tensor,
    variant: Variant,
) -> None:
    batch, heads, _, head_dim = q.shape
    q_blocks, chunk_q, chunk_k = q_layout.blocks.volume, q_layout.chunk.volume, k_layout.chunk.volume
    launch = launch_options(q.dtype, head_dim, chunk_q, chunk_k, shared_memory(q.device), variant)
    tiles_q = triton.cdiv(chunk_q, launch["TILE_Q"])
    tensors, device = (q, k, v, out), q.device
    _attend_blocks_kernel[(q_blocks * tiles_q, batch * heads)](
        *tensors, selection.indices, first_tokens, selection.whole_counts, selection.counts,
        q_layout.starts(device), q_layout.sizes(device), k_layout.sizes(device),
        *(stride for x in tensors for stride in x.stride()[:2]),
        heads, q_blocks, selection.indices.shape[-1], scale * math.log2(math.e),
        *(x.stride(2) for x in tensors),
        HEAD_DIM=head_dim, CHUNK_Q=chunk_q, CHUNK_K=chunk_k, REGULAR=not k_layout.ragged,
        RAGGED_Q=q_layout.ragged, RAGGED_K=k_layout.ragged, **launch,
    )  # fmt: skip
