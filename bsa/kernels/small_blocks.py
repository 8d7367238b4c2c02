"""The attention kernel for small key blocks: a tile of keys holds several blocks, each found by its own list entry.

It computes the same as `bsa.kernels.pointers`. A block of 8, 16 or 32 keys would leave a product's tile mostly empty,
so TILE // CHUNK blocks share one. The tokens of a tile are rows gathered by plain pointers; each block is contiguous,
so its rows are still read in long runs. On Hopper this costs nothing against key blocks of 64 (docs/hopper.md).
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
def _attend_tiles(
    acc, row_max, row_sum, q, k_head, v_head, row_indices, row_tokens, sizes, first, last, count, scale_log2,
    K_TOKEN: tl.constexpr, V_TOKEN: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, CHUNK: tl.constexpr,
    SLOTS: tl.constexpr, TILE: tl.constexpr, REGULAR: tl.constexpr, MASKED: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend to tiles first..last of one row of the index list, which has ``count`` entries.

    SLOTS: rows of a tile for one block, CHUNK rounded up to a power of two. MASKED: blocks may be smaller than CHUNK,
    and the last tile may be partly empty; without, all rows of all tiles are tokens. WIDE: places need 64 bits.
    """
    ENTRIES: tl.constexpr = TILE // SLOTS
    rows = tl.arange(0, TILE)
    dims = tl.arange(0, DIM)
    for tile in range(first, last):
        entry = tile * ENTRIES + rows // SLOTS
        if MASKED:
            entry = tl.minimum(entry, count - 1)
            real = (tile * ENTRIES + rows // SLOTS < count) & (
                rows % SLOTS < tl.load(sizes + tl.load(row_indices + entry))
            )
        token = first_token(row_tokens, entry, CHUNK, REGULAR) + rows % SLOTS
        if WIDE:
            token = token.to(tl.int64)
        # [TILE, DIM]
        k_tile = k_head + token[:, None] * K_TOKEN + dims[None, :]
        v_tile = v_head + token[:, None] * V_TOKEN + dims[None, :]
        if MASKED:
            inside = real[:, None] & (dims[None, :] < HEAD_DIM)
            k = tl.load(k_tile, mask=inside, other=0.0)
            v = tl.load(v_tile, mask=inside, other=0.0)
        else:
            k = tl.load(k_tile)
            v = tl.load(v_tile)
        # [TILE_Q, TILE]
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if MASKED:
            scores = tl.where(real[None, :], scores, float("-inf"))
        acc, row_max, row_sum = online_softmax_update(acc, row_max, row_sum, scores, v, scale_log2, PRECISION)
    return acc, row_max, row_sum


@triton.jit(do_not_specialize=SIZES)
def _attend_small_blocks_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, indices_ptr, first_tokens_ptr, whole_counts_ptr, counts_ptr,
    q_starts_ptr, q_sizes_ptr, k_sizes_ptr,
    q_batch, q_head, k_batch, k_head, v_batch, v_head, out_batch, out_head, heads, q_blocks, width, scale_log2,
    Q_TOKEN: tl.constexpr, K_TOKEN: tl.constexpr, V_TOKEN: tl.constexpr, OUT_TOKEN: tl.constexpr,
    HEAD_DIM: tl.constexpr, DIM: tl.constexpr, CHUNK_Q: tl.constexpr, CHUNK_K: tl.constexpr, SLOTS: tl.constexpr,
    TILE_Q: tl.constexpr, TILE_K: tl.constexpr, REGULAR: tl.constexpr, RAGGED_Q: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Like `_attend_blocks_kernel` of `bsa.kernels.pointers`, for CHUNK_K < TILE_K."""
    ENTRIES: tl.constexpr = TILE_K // SLOTS
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
    count = tl.load(counts_ptr + row)
    full = 0
    if SLOTS == CHUNK_K and HEAD_DIM == DIM:
        full = tl.load(whole_counts_ptr + row) // ENTRIES
        acc, row_max, row_sum = _attend_tiles(
            acc, row_max, row_sum, q, k_ptr, v_ptr, row_indices, row_tokens, k_sizes_ptr, 0, full, count, scale_log2,
            K_TOKEN, V_TOKEN, HEAD_DIM, DIM, CHUNK_K, SLOTS, TILE_K, REGULAR, False, WIDE, PRECISION,
        )  # fmt: skip
    acc, row_max, row_sum = _attend_tiles(
        acc, row_max, row_sum, q, k_ptr, v_ptr, row_indices, row_tokens, k_sizes_ptr, full,
        tl.cdiv(count, ENTRIES), count, scale_log2,
        K_TOKEN, V_TOKEN, HEAD_DIM, DIM, CHUNK_K, SLOTS, TILE_K, REGULAR, True, WIDE, PRECISION,
    )  # fmt: skip

    out_tile = out_ptr + batch * out_batch + head * out_head + token * OUT_TOKEN
    out_tile += rows[:, None] * OUT_TOKEN + dims[None, :]
    store_output(out_tile, acc, row_sum, inside)


def attend_small_blocks(
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
    """`attend_tokens` for a variant that puts several key blocks into a tile."""
    batch, heads, _, head_dim = q.shape
    q_blocks, chunk_q, chunk_k = q_layout.blocks.volume, q_layout.chunk.volume, k_layout.chunk.volume
    # as for key blocks that fill a tile
    launch = launch_options(q.dtype, head_dim, chunk_q, variant.tile_k, shared_memory(q.device), variant)
    slots = min(triton.next_power_of_2(chunk_k), launch["TILE_K"])
    if chunk_k > slots:
        raise ValueError(
            f"the variant {variant.name} puts whole key blocks into tiles of {launch['TILE_K']}, and one of "
            f"{k_layout.chunk} has {chunk_k} keys; use the baseline variant"
        )
    tensors, device = (q, k, v, out), q.device
    _attend_small_blocks_kernel[(q_blocks * triton.cdiv(chunk_q, launch["TILE_Q"]), batch * heads)](
        *tensors, selection.indices, first_tokens, selection.whole_counts, selection.counts,
        q_layout.starts(device), q_layout.sizes(device), k_layout.sizes(device),
        *(stride for x in tensors for stride in x.stride()[:2]),
        heads, q_blocks, selection.indices.shape[-1], scale * math.log2(math.e),
        *(x.stride(2) for x in tensors),
        HEAD_DIM=head_dim, CHUNK_Q=chunk_q, CHUNK_K=chunk_k, SLOTS=slots, REGULAR=not k_layout.ragged,
        RAGGED_Q=q_layout.ragged, WIDE=max(x.stride(2) for x in (k, v)) * k.shape[2] >= 1 << 31, **launch,
    )  # fmt: skip
