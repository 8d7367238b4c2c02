"""The attention kernel with keys and values loaded through tensor descriptors (TMA; compute capability 9.0 and up).

It computes the same as `bsa.kernels.pointers`, for half precision, head sizes that are powers of two, and chunks that
full tiles fill. A descriptor treats keys as a matrix [rows, columns]. Token and head become a row offset and a column
offset, so both layouts (heads before tokens, or heads inside tokens as projections write them) are read in place. A
tile that reaches past its block reads the next block's rows, or zeros past the end; the mask of smaller blocks hides
them.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from bsa.block_selection import BlockSelection
from bsa.kernels.launch import launch_options, shared_memory
from bsa.kernels.primitives import SIZES, first_token, online_softmax_update, store_output
from bsa.layout import BlockLayout
from bsa.variants import Variant


@triton.jit
def _tile_row(row_tokens, step, CHUNK: tl.constexpr, TILE: tl.constexpr, REGULAR: tl.constexpr):
    """The first token of a step's tile."""
    TILES: tl.constexpr = CHUNK // TILE
    return first_token(row_tokens, step // TILES, CHUNK, REGULAR) + (step % TILES) * TILE


@triton.jit
def _whole_range(
    acc, row_max, row_sum, q, k_desc, v_desc, row_tokens, count, k_row, k_column, v_row, v_column, scale_log2,
    backwards, CHUNK: tl.constexpr, TILE: tl.constexpr, REGULAR: tl.constexpr,
):  # fmt: skip
    steps = count * (CHUNK // TILE)
    for step in range(0, steps):
        place = step + backwards * (steps - 1 - 2 * step)
        row = _tile_row(row_tokens, place, CHUNK, TILE, REGULAR)
        k = k_desc.load([k_row + row, k_column])
        # [TILE_Q, TILE]
        scores = tl.dot(q, tl.trans(k))
        v = v_desc.load([v_row + row, v_column])
        acc, row_max, row_sum = online_softmax_update(acc, row_max, row_sum, scores, v, scale_log2, "ieee")
    return acc, row_max, row_sum


@triton.jit
def _cut_range(
    acc, row_max, row_sum, q, k_desc, v_desc, row_indices, row_tokens, sizes, first, last,
    k_row, k_column, v_row, v_column, scale_log2, CHUNK: tl.constexpr, TILE: tl.constexpr, REGULAR: tl.constexpr,
):  # fmt: skip
    """Attend to smaller blocks at the edge: keys past the block's size are masked, and empty tiles are skipped."""
    TILES: tl.constexpr = CHUNK // TILE
    tokens = tl.arange(0, TILE)
    for step in range(first * TILES, last * TILES):
        size = tl.load(sizes + tl.load(row_indices + step // TILES)) - (step % TILES) * TILE
        if size > 0:
            row = _tile_row(row_tokens, step, CHUNK, TILE, REGULAR)
            k = k_desc.load([k_row + row, k_column])
            scores = tl.dot(q, tl.trans(k))
            scores = tl.where(tokens[None, :] < size, scores, float("-inf"))
            v = v_desc.load([v_row + row, v_column])
            acc, row_max, row_sum = online_softmax_update(acc, row_max, row_sum, scores, v, scale_log2, "ieee")
    return acc, row_max, row_sum


@triton.jit(do_not_specialize=(*SIZES, "wave"))
def _attend_descriptors_kernel(
    q_ptr, k_desc, v_desc, out_ptr, indices_ptr, first_tokens_ptr, whole_counts_ptr, counts_ptr,
    q_starts_ptr, q_sizes_ptr, k_sizes_ptr,
    q_batch, q_head, out_batch, out_head, k_row_batch, k_row_head, k_column_head, v_row_batch, v_row_head,
    v_column_head, heads, q_blocks, width, wave, scale_log2,
    Q_TOKEN: tl.constexpr, OUT_TOKEN: tl.constexpr, DIM: tl.constexpr, CHUNK_Q: tl.constexpr, CHUNK_K: tl.constexpr,
    TILE_Q: tl.constexpr, TILE_K: tl.constexpr, REGULAR: tl.constexpr, RAGGED_Q: tl.constexpr, RAGGED_K: tl.constexpr,
    Q_IN_REGISTERS: tl.constexpr, SERPENTINE: tl.constexpr,
):  # fmt: skip
    """Like `_attend_blocks_kernel`. k_desc, v_desc: matrices with tiles [TILE_K, DIM].

    SERPENTINE: groups of ``wave`` programs alternately go through their lists forwards and backwards, so that a
    starting program finds tiles in the L2 cache that an ending one has read.
    """
    TILES_Q: tl.constexpr = CHUNK_Q // TILE_Q
    batch = tl.program_id(1) // heads
    head = tl.program_id(1) % heads
    q_block = tl.program_id(0) // TILES_Q
    start = (tl.program_id(0) % TILES_Q) * TILE_Q
    line = tl.program_id(1).to(tl.int64) * q_blocks + q_block

    q_size = CHUNK_Q
    if RAGGED_Q:
        q_size = tl.load(q_sizes_ptr + q_block)
    if start >= q_size:
        return

    rows = start + tl.arange(0, TILE_Q)
    dims = tl.arange(0, DIM)
    token = (tl.load(q_starts_ptr + q_block) if RAGGED_Q else q_block * CHUNK_Q).to(tl.int64)
    inside = rows[:, None] < q_size
    # [TILE_Q, DIM]
    q_tile = q_ptr + batch.to(tl.int64) * q_batch + head.to(tl.int64) * q_head + token * Q_TOKEN
    q = tl.load(q_tile + rows[:, None] * Q_TOKEN + dims[None, :], mask=inside, other=0.0)
    if Q_IN_REGISTERS:
        # Triton keeps a loaded factor of a product in shared memory, but a product's result in registers. It is exact.
        q = tl.dot(q, (dims[:, None] == dims[None, :]).to(q.dtype)).to(q.dtype)

    acc = tl.zeros([TILE_Q, DIM], tl.float32)
    row_max = tl.full([TILE_Q], float("-inf"), tl.float32)
    row_sum = tl.zeros([TILE_Q], tl.float32)
    k_row, k_column = batch * k_row_batch + head * k_row_head, head * k_column_head
    v_row, v_column = batch * v_row_batch + head * v_row_head, head * v_column_head
    row_indices, row_tokens = indices_ptr + line * width, first_tokens_ptr + line * width
    whole = tl.load(whole_counts_ptr + line)
    backwards = 0
    if SERPENTINE:
        backwards = (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) // wave % 2
    acc, row_max, row_sum = _whole_range(
        acc, row_max, row_sum, q, k_desc, v_desc, row_tokens, whole,
        k_row, k_column, v_row, v_column, scale_log2, backwards, CHUNK_K, TILE_K, REGULAR,
    )  # fmt: skip
    if RAGGED_K:
        acc, row_max, row_sum = _cut_range(
            acc, row_max, row_sum, q, k_desc, v_desc, row_indices, row_tokens, k_sizes_ptr, whole,
            tl.load(counts_ptr + line), k_row, k_column, v_row, v_column, scale_log2, CHUNK_K, TILE_K, REGULAR,
        )  # fmt: skip

    out_tile = out_ptr + batch.to(tl.int64) * out_batch + head.to(tl.int64) * out_head + token * OUT_TOKEN
    store_output(out_tile + rows[:, None] * OUT_TOKEN + dims[None, :], acc, row_sum, inside)


def descriptor_obstacle(
    dtype: torch.dtype, head_dim: int, chunk_k: int, chunk_q: int, tile_q: int, tile_k: int
) -> str | None:
    """The reason why the descriptor kernel cannot take tensors of this kind, or None."""
    if dtype == torch.float64 or dtype.itemsize > 2 and not _interpreted():
        return f"tensor descriptors are used for half precision, not {dtype}"
    if head_dim & (head_dim - 1) or not 16 <= head_dim <= 256:
        return f"a head size of {head_dim} is not a power of two from 16 to 256"
    if chunk_q % tile_q or chunk_k % tile_k:
        return f"tiles of {tile_q} and {tile_k} tokens do not fill chunks of {chunk_q} and {chunk_k}"
    return None


def attend_with_descriptors(
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
    """`attend_tokens` for a variant with descriptors. Raises ValueError for tensors that it cannot take."""
    batch, heads, _, head_dim = q.shape
    device = q.device
    q_blocks, chunk_q, chunk_k = q_layout.blocks.volume, q_layout.chunk.volume, k_layout.chunk.volume
    launch = launch_options(q.dtype, head_dim, chunk_q, chunk_k, shared_memory(device), variant)
    obstacle = descriptor_obstacle(q.dtype, head_dim, chunk_k, chunk_q, launch["TILE_Q"], launch["TILE_K"])
    if obstacle is None and q.is_cuda and torch.cuda.get_device_capability(device) < (9, 0):
        obstacle = f"{torch.cuda.get_device_name(device)} has no copy engine for tensor descriptors"
    k_desc, k_rows = _as_matrix(k, launch["TILE_K"])
    v_desc, v_rows = _as_matrix(v, launch["TILE_K"])
    if obstacle or k_desc is None or v_desc is None:
        obstacle = obstacle or "keys and values are not rows of one matrix, 16-byte aligned"
        raise ValueError(f"the variant {variant.name} cannot run because {obstacle}; use the baseline variant")
    for name in ("DIM", "PRECISION"):
        launch.pop(name)
    if variant.max_registers is not None:
        launch["maxnreg"] = variant.max_registers
    _attend_descriptors_kernel[(q_blocks * (chunk_q // launch["TILE_Q"]), batch * heads)](
        q, k_desc, v_desc, out, selection.indices, first_tokens, selection.whole_counts, selection.counts,
        q_layout.starts(device), q_layout.sizes(device), k_layout.sizes(device),
        *q.stride()[:2], *out.stride()[:2], *k_rows, *v_rows,
        heads, q_blocks, selection.indices.shape[-1], _wave(device), scale * math.log2(math.e),
        Q_TOKEN=q.stride(2), OUT_TOKEN=out.stride(2), DIM=head_dim, CHUNK_Q=chunk_q, CHUNK_K=chunk_k,
        REGULAR=not k_layout.ragged, RAGGED_Q=q_layout.ragged, RAGGED_K=k_layout.ragged,
        Q_IN_REGISTERS=variant.q_in_registers, SERPENTINE=variant.serpentine, **launch,
    )  # fmt: skip


def _wave(device: torch.device) -> int:
    """Number of programs that run at the same time: two on each multiprocessor."""
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def _as_matrix(x: Tensor, tile: int) -> tuple[TensorDescriptor | None, tuple[int, int, int]]:
    """View [B, H, tokens, D] as a matrix whose rows are tokens. Returns its descriptor and the strides
    (rows per batch, rows per head, columns per head).

    The descriptor is None if strides or alignment do not allow one.
    """
    (batch, heads, tokens, dim), (per_batch, per_head, per_token) = x.shape, x.stride()[:3]
    if per_head < per_token:  # heads inside tokens: [B * tokens, H * D]
        columns, rows = heads * dim, (per_batch // per_token if batch > 1 else 0, 0, per_head)
        fits = batch == 1 or per_batch % per_token == 0
    else:  # heads before tokens: [B * H * tokens, D]
        columns, rows = dim, (per_batch // per_token if batch > 1 else 0, per_head // per_token if heads > 1 else 0, 0)
        fits = (heads == 1 or per_head % per_token == 0) and (batch == 1 or per_batch % per_token == 0)
    aligned = x.data_ptr() % 16 == 0 and per_token * x.element_size() % 16 == 0 and x.stride(3) == 1
    if not (fits and aligned):
        return None, rows
    height = (batch - 1) * rows[0] + (heads - 1) * rows[1] + tokens
    return TensorDescriptor(x, [height, columns], [per_token, 1], [tile, dim]), rows


def _interpreted() -> bool:
    return bool(triton.knobs.runtime.interpret)
