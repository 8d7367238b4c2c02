"""The attention kernel in 8 bits: int8 products of queries and keys, e4m3 products of weights and values.

The same online softmax as in `bsa.kernels.pointers`, with sums in fp32:

    S = Q8 K8^T              exact in int32, times the scales of the two tiles
    P = 448 * 2^(S - m)      rounded to e4m3: m is the largest score so far, so P is at most the largest e4m3 number
    A = decay * A + P V8^T   Hopper sums e4m3 products in fewer bits than fp32; SUMMED is how many at a time

Half as many bytes as in bf16 are read, and on GPUs with e4m3 both products run at twice the rate. Where those are
missing (compute capability below 8.9), weights and values are fp16. Off by default: see `bsa.block_order_attention`.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from bsa.block_selection import BlockSelection
from bsa.kernels.launch import on_device
from bsa.kernels.primitives import SIZES, store_output
from bsa.kernels.quantise import E4M3, LARGEST, Tiles, quantise_rows, quantise_values
from bsa.layout import BlockLayout
from bsa.variants import EIGHT_BITS, EightBits

_MAGIC = tl.constexpr(0x4B400000)  # the bits of 1.5 * 2^23 in fp32


@triton.jit
def _to_fp32(x):
    """int32 below 2^22 as fp32, by two cheap additions: a conversion takes as long as an exponential."""
    return (x + _MAGIC).to(tl.float32, bitcast=True) - 12582912.0


@triton.jit
def _attend_tiles(
    acc, row_max, row_sum, q, q_scale, k, k_scales, v, row_indices, sizes, first, last, k_tile, peak,
    DIM: tl.constexpr, TILES: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr, RAGGED: tl.constexpr,
    DESCRIPTORS: tl.constexpr, SUMMED: tl.constexpr,
):  # fmt: skip
    """Attend to entries first..last of one row of the index list. RAGGED: read each block's size; else all are full."""
    slots, dims = tl.arange(0, TILE), tl.arange(0, DIM)
    for step in range(first * TILES, last * TILES):
        block = tl.load(row_indices + step // TILES)
        tile = k_tile + block * TILES + step % TILES
        if DESCRIPTORS:
            keys = k.load([tile * TILE, 0])
            values = v.load([tile * DIM, 0])
        else:
            place = tile.to(tl.int64) * TILE * DIM
            keys = tl.load(k + place + slots[:, None] * DIM + dims[None, :])
            values = tl.load(v + place + dims[:, None] * TILE + slots[None, :])
        # [TILE_Q, TILE]
        scores = _to_fp32(tl.dot(q, tl.trans(keys))) * (q_scale * tl.load(k_scales + tile))
        if RAGGED:
            size = tl.load(sizes + block)
            scores = tl.where((step % TILES) * TILE + slots[None, :] < size, scores, float("-inf"))
        elif CHUNK % TILE != 0:
            scores = tl.where((step % TILES) * TILE + slots[None, :] < CHUNK, scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        probs = tl.exp2(scores - (new_max - peak)[:, None])
        decay = tl.exp2(row_max - new_max)
        row_sum = row_sum * decay + tl.sum(probs, 1)
        acc = tl.dot(
            probs.to(values.dtype), tl.trans(values), acc * decay[:, None], max_num_imprecise_acc=SUMMED
        )  # fmt: skip
        row_max = new_max
    return acc, row_max, row_sum


@triton.jit(do_not_specialize=(*SIZES, "k_blocks"))
def _attend_8_bits_kernel(
    q_ptr, q_scales_ptr, k, k_scales_ptr, v, v_scales_ptr, out_ptr, indices_ptr, whole_counts_ptr, counts_ptr,
    q_starts_ptr, q_sizes_ptr, k_sizes_ptr, out_batch, out_head, out_token, heads, q_blocks, k_blocks, width, peak,
    HEAD_DIM: tl.constexpr, DIM: tl.constexpr, CHUNK: tl.constexpr, TILES_Q: tl.constexpr, TILE_Q: tl.constexpr,
    TILES: tl.constexpr, TILE: tl.constexpr, RAGGED: tl.constexpr, DESCRIPTORS: tl.constexpr,
    SUMMED: tl.constexpr,
):  # fmt: skip
    """Each program handles one tile of one query block of one head, with that block's list of key blocks.

    q_ptr, k, v: the values of `Tiles`, k and v as pointers, or as matrices [tiles * TILE, DIM] and [tiles * DIM, TILE].
    out: [B, H, tokens, HEAD_DIM]. peak: log2 of the largest weight. CHUNK: tokens of a whole key block.
    """
    line = tl.program_id(1)
    q_block, q_tile = tl.program_id(0) // TILES_Q, tl.program_id(0) % TILES_Q
    rows, dims = q_tile * TILE_Q + tl.arange(0, TILE_Q), tl.arange(0, DIM)
    q_size = tl.load(q_sizes_ptr + q_block)
    if q_tile * TILE_Q >= q_size:
        return

    place = line.to(tl.int64) * q_blocks * TILES_Q + tl.program_id(0)
    slots = tl.arange(0, TILE_Q)
    q = tl.load(q_ptr + (place * TILE_Q + slots[:, None]) * DIM + dims[None, :])
    q_scale = tl.load(q_scales_ptr + place)

    acc = tl.zeros([TILE_Q, DIM], tl.float32)
    row_max = tl.full([TILE_Q], float("-inf"), tl.float32)
    row_sum = tl.zeros([TILE_Q], tl.float32)
    row = line.to(tl.int64) * q_blocks + q_block
    row_indices, k_tile = indices_ptr + row * width, line * k_blocks * TILES
    whole = tl.load(whole_counts_ptr + row)
    acc, row_max, row_sum = _attend_tiles(
        acc, row_max, row_sum, q, q_scale, k, k_scales_ptr, v, row_indices, k_sizes_ptr, 0, whole, k_tile, peak,
        DIM, TILES, TILE, CHUNK, False, DESCRIPTORS, SUMMED,
    )  # fmt: skip
    if RAGGED:
        acc, row_max, row_sum = _attend_tiles(
            acc, row_max, row_sum, q, q_scale, k, k_scales_ptr, v, row_indices, k_sizes_ptr, whole,
            tl.load(counts_ptr + row), k_tile, peak, DIM, TILES, TILE, CHUNK, True, DESCRIPTORS, SUMMED,
        )  # fmt: skip

    acc *= tl.load(v_scales_ptr + line * DIM + dims)[None, :]
    token = tl.load(q_starts_ptr + q_block).to(tl.int64) + rows
    out_ptr += (line // heads).to(tl.int64) * out_batch + (line % heads).to(tl.int64) * out_head
    inside = (rows[:, None] < q_size) & (dims[None, :] < HEAD_DIM)
    store_output(out_ptr + token[:, None] * out_token + dims[None, :], acc, row_sum, inside)


def attend_in_8_bits(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    selection: BlockSelection,
    q_layout: BlockLayout,
    k_layout: BlockLayout,
    scale: float,
    out: Tensor,
    *,
    variant: EightBits = EIGHT_BITS,
    values: torch.dtype | None = None,
) -> None:
    """`bsa.kernels.attend.attend_tokens` in 8 bits: quantises q, k and v, and computes attention into ``out``.

    selection: with ``whole_counts``.
    variant: tiles and the way keys and values are loaded. values: dtype of weights and values, float8_e4m3fn or
        float16; by default the first where the GPU has products in it.
    """
    q8, k8, v8 = quantise(q, k, v, q_layout, k_layout, scale, variant, values)
    tile_q, tile_k = q8.values.shape[-2], k8.values.shape[-2]
    (batch, heads, q_blocks, tiles_q), (k_blocks, tiles_k) = q8.scales.shape, k8.scales.shape[2:]
    dim, device = q8.values.shape[-1], q.device
    keys, valued = (x.values for x in (k8, v8))
    if variant.descriptors:
        keys, valued = (_as_matrix(x) for x in (k8, v8))
    with on_device(q):
        _attend_8_bits_kernel[(q_blocks * tiles_q, batch * heads)](
            *q8, keys, k8.scales, valued, v8.scales, out, selection.indices, selection.whole_counts, selection.counts,
            q_layout.starts(device), q_layout.sizes(device), k_layout.sizes(device), *out.stride()[:3],
            heads, q_blocks, k_blocks, selection.indices.shape[-1], math.log2(LARGEST[v8.values.dtype]),
            HEAD_DIM=q.shape[-1], DIM=dim, CHUNK=k_layout.chunk.volume, TILES_Q=tiles_q, TILE_Q=tile_q, TILES=tiles_k,
            TILE=tile_k, RAGGED=k_layout.ragged, DESCRIPTORS=variant.descriptors,
            SUMMED=32 if variant.exact_sums else tile_k, num_warps=variant.num_warps, num_stages=variant.num_stages,
        )  # fmt: skip


def quantise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_layout: BlockLayout,
    k_layout: BlockLayout,
    scale: float,
    variant: EightBits = EIGHT_BITS,
    values: torch.dtype | None = None,
) -> tuple[Tiles, Tiles, Tiles]:
    """What the kernel reads of the arguments of `attend_in_8_bits`."""
    tile_q, tile_k = variant.tiles(q_layout.chunk.volume, k_layout.chunk.volume)
    return (
        quantise_rows(q, q_layout, tile_q, factor=scale * math.log2(math.e)),
        quantise_rows(k, k_layout, tile_k, mean=k.mean(dim=2, dtype=torch.float32)),
        quantise_values(v, k_layout, tile_k, values or _values_of(q.device)),
    )


def _as_matrix(tiles: Tiles) -> TensorDescriptor:
    rows, columns = tiles.values.shape[-2:]
    return TensorDescriptor.from_tensor(tiles.values.view(-1, columns), [rows, columns])


def _values_of(device: torch.device) -> torch.dtype:
    """The dtype of weights and values: e4m3 where the GPU multiplies it (Triton's interpreter does)."""
    return E4M3 if device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 9) else torch.float16
