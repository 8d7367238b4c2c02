"""Triton forward kernel: flash attention over a list of key blocks per query block.

For a query tile Q and the kept key tiles K_j, V_j, with s = scale * log2(e), one pass keeps

    m' = max(m, rowmax(s Q K_j^T))        P = 2^(s Q K_j^T - m')
    l' = 2^(m - m') l + rowsum(P)         A' = 2^(m - m') A + P V_j

and writes A / l at the end (online softmax, arXiv 2205.14135). Everything that accumulates is fp32.
Written to the part of the language that Triton 3.6 to 3.9 share: plain pointers, no block pointers.
"""

from __future__ import annotations

import contextlib
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from bsa.layout import BlockLayout
from bsa.selection import BlockSelection


@triton.jit
def _online_softmax_update(acc, row_max, row_sum, scores, values, scale_log2, PRECISION: tl.constexpr):
    new_max = tl.maximum(row_max, tl.max(scores, 1) * scale_log2)
    probs = tl.exp2(scores * scale_log2 - new_max[:, None])
    decay = tl.exp2(row_max - new_max)
    row_sum = row_sum * decay + tl.sum(probs, 1)
    acc = tl.dot(probs.to(values.dtype), values, acc * decay[:, None], input_precision=PRECISION)
    return acc, new_max, row_sum


@triton.jit
def _attend_range(
    acc, row_max, row_sum, q, k_head, v_head, row_indices, sizes, first, last, scale_log2,
    HEAD_DIM: tl.constexpr, DIM: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr,
    RAGGED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Entries first..last of one row of the index list. RAGGED: read each block's size, else all are whole."""
    TILES: tl.constexpr = (CHUNK + TILE - 1) // TILE
    WHOLE_TILES: tl.constexpr = CHUNK % TILE == 0
    rows = tl.arange(0, TILE)
    dims = tl.arange(0, DIM)
    # [TILE, DIM]
    offsets = rows[:, None] * HEAD_DIM + dims[None, :]
    for step in range(first * TILES, last * TILES):
        block = tl.load(row_indices + step // TILES)
        start = (step % TILES) * TILE
        tile = (block.to(tl.int64) * CHUNK + start) * HEAD_DIM
        if WHOLE_TILES and HEAD_DIM == DIM:
            k = tl.load(k_head + tile + offsets)
            v = tl.load(v_head + tile + offsets)
        else:
            inside = (start + rows[:, None] < CHUNK) & (dims[None, :] < HEAD_DIM)
            k = tl.load(k_head + tile + offsets, mask=inside, other=0.0)
            v = tl.load(v_head + tile + offsets, mask=inside, other=0.0)
        # [TILE_Q, TILE]
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if RAGGED:
            scores = tl.where(start + rows[None, :] < tl.load(sizes + block), scores, float("-inf"))
        elif not WHOLE_TILES:
            scores = tl.where(start + rows[None, :] < CHUNK, scores, float("-inf"))
        acc, row_max, row_sum = _online_softmax_update(acc, row_max, row_sum, scores, v, scale_log2, PRECISION)
    return acc, row_max, row_sum


@triton.jit
def _attend_blocks_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, indices_ptr, whole_counts_ptr, counts_ptr, q_sizes_ptr, k_sizes_ptr,
    q_blocks, k_blocks, width, scale_log2,
    HEAD_DIM: tl.constexpr, DIM: tl.constexpr, CHUNK_Q: tl.constexpr, CHUNK_K: tl.constexpr,
    TILE_Q: tl.constexpr, TILE_K: tl.constexpr, RAGGED_Q: tl.constexpr, RAGGED_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: TILE_Q queries of one query block of one head, against that block's key list.

    q, out: [BH, q_blocks, CHUNK_Q, HEAD_DIM]; k, v: [BH, k_blocks, CHUNK_K, HEAD_DIM]; all contiguous.
    indices: [BH, q_blocks, width], whole key blocks first; whole_counts and counts: [BH, q_blocks].
    """
    TILES_Q: tl.constexpr = (CHUNK_Q + TILE_Q - 1) // TILE_Q
    head = tl.program_id(1).to(tl.int64)
    q_block = tl.program_id(0) // TILES_Q
    start = (tl.program_id(0) % TILES_Q) * TILE_Q
    row = head * q_blocks + q_block

    q_size = CHUNK_Q
    if RAGGED_Q:
        q_size = tl.load(q_sizes_ptr + q_block)
    if start >= q_size:
        return

    rows = start + tl.arange(0, TILE_Q)
    dims = tl.arange(0, DIM)
    # [TILE_Q, DIM]
    tile = row * (CHUNK_Q * HEAD_DIM) + rows[:, None] * HEAD_DIM + dims[None, :]
    inside = (rows[:, None] < q_size) & (dims[None, :] < HEAD_DIM)
    q = tl.load(q_ptr + tile, mask=inside, other=0.0)

    acc = tl.zeros([TILE_Q, DIM], tl.float32)
    row_max = tl.full([TILE_Q], float("-inf"), tl.float32)
    row_sum = tl.zeros([TILE_Q], tl.float32)
    k_head = k_ptr + head * k_blocks * (CHUNK_K * HEAD_DIM)
    v_head = v_ptr + head * k_blocks * (CHUNK_K * HEAD_DIM)
    row_indices = indices_ptr + row * width
    whole = tl.load(whole_counts_ptr + row)
    acc, row_max, row_sum = _attend_range(
        acc, row_max, row_sum, q, k_head, v_head, row_indices, k_sizes_ptr, 0, whole, scale_log2,
        HEAD_DIM, DIM, CHUNK_K, TILE_K, False, PRECISION,
    )  # fmt: skip
    if RAGGED_K:
        acc, row_max, row_sum = _attend_range(
            acc, row_max, row_sum, q, k_head, v_head, row_indices, k_sizes_ptr, whole, tl.load(counts_ptr + row),
            scale_log2, HEAD_DIM, DIM, CHUNK_K, TILE_K, True, PRECISION,
        )  # fmt: skip

    # A query block with an empty list attends to nothing: zeros, not 0 / 0.
    out = acc / tl.where(row_sum == 0.0, 1.0, row_sum)[:, None]
    tl.store(out_ptr + tile, out.to(out_ptr.dtype.element_ty), mask=inside)


def attend_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    selection: BlockSelection,
    q_layout: BlockLayout,
    k_layout: BlockLayout,
    scale: float,
    out: Tensor | None = None,
) -> Tensor:
    """q, k, v: contiguous block-major [B, H, N, C, D] on CUDA; scale > 0. Returns (or fills) ``out``, shaped like q.

    Padding rows of ``out`` are left unwritten. Head dims 16 to 256 in bf16, fp16 or fp32.
    """
    batch, heads, q_blocks, chunk_q, head_dim = q.shape
    k_blocks, chunk_k = k.shape[2:4]
    out = torch.empty_like(q) if out is None else out
    indices, whole_counts = _whole_blocks_first(selection, k_layout)
    launch = launch_options(q.dtype, head_dim, chunk_q, chunk_k, _shared_memory(q.device))
    tiles_q = triton.cdiv(chunk_q, launch["TILE_Q"])
    with torch.cuda.device(q.device) if q.is_cuda else contextlib.nullcontext():
        _attend_blocks_kernel[(q_blocks * tiles_q, batch * heads)](
            q, k, v, out, indices, whole_counts, selection.counts.contiguous(),
            q_layout.sizes(q.device), k_layout.sizes(q.device),
            q_blocks, k_blocks, indices.shape[-1], scale * math.log2(math.e),
            HEAD_DIM=head_dim, CHUNK_Q=chunk_q, CHUNK_K=chunk_k,
            RAGGED_Q=q_layout.ragged, RAGGED_K=k_layout.ragged, **launch,
        )  # fmt: skip
    return out


def _whole_blocks_first(selection: BlockSelection, k_layout: BlockLayout) -> tuple[Tensor, Tensor]:
    """Moves blocks cut short by the edge behind the whole ones, so that the main loop needs no mask."""
    indices, counts = selection.indices.contiguous(), selection.counts.contiguous()
    if not k_layout.ragged:
        return indices, counts
    unused = torch.arange(indices.shape[-1], device=indices.device) >= counts[..., None]
    whole = (k_layout.sizes(indices.device)[indices] == k_layout.chunk.volume) & ~unused
    rank = torch.where(whole, 0, 1) + unused
    return indices.gather(-1, rank.argsort(dim=-1, stable=True)), whole.sum(-1, dtype=torch.int32)


def launch_options(dtype: torch.dtype, head_dim: int, chunk_q: int, chunk_k: int, shared_memory: int) -> dict:
    """Tile shape, dot precision and pipeline depth; shared_memory: bytes one program may use."""
    dim = max(16, triton.next_power_of_2(head_dim))
    # fp32 products run on the ordinary cores, unrolled: smaller tiles keep them in registers.
    largest = 32 if dtype == torch.float32 else 64
    tile_q, tile_k = (min(largest, max(16, triton.next_power_of_2(chunk))) for chunk in (chunk_q, chunk_k))
    q_bytes, stage_bytes = tile_q * dim * dtype.itemsize, 2 * tile_k * dim * dtype.itemsize
    return {
        "DIM": dim,
        "TILE_Q": tile_q,
        "TILE_K": tile_k,
        # "ieee" forbids TF32: an fp32 caller asked for fp32.
        "PRECISION": "ieee",
        "num_warps": 4,
        "num_stages": max(1, min(3, (shared_memory - q_bytes) // stage_bytes)),
    }


def _shared_memory(device: torch.device) -> int:
    if device.type != "cuda":
        return 1 << 20  # Triton's interpreter has no such limit.
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin
