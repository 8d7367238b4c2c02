"""Converts queries, keys and values to 8 bits for `bsa.kernels.eight_bits`, in blocks that whole tiles fill.

Queries and keys become int8 with one scale per tile of at most 64 tokens, after the mean key of the head was taken from
every key. That adds the same to all scores of a query, so it changes no weight, and the numbers left are several times
smaller (SageAttention, arXiv 2410.02367). Values become e4m3 with one scale per channel (SageAttention2, arXiv
2411.10958), or fp16 on GPUs that have no products in e4m3.

A block is padded with zeros to whole tiles. So block n begins at n times one number even where the blocks at the edge
are smaller, and each tile is one piece of memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from bsa.kernels.launch import on_device
from bsa.layout import BlockLayout

E4M3 = torch.float8_e4m3fn
LARGEST = {E4M3: 448.0, torch.float16: 1.0}  # that a value is scaled to
_TINY = 1e-12  # least scale: all numbers of a tile may be zero


class Tiles(NamedTuple):
    """A tensor in 8 bits, in tiles, and the scales of its numbers.

    values: of queries and keys [B, H, blocks, tiles, tile, dims] int8, of values [B, H, blocks, tiles, dims, tile] e4m3
        or fp16, keys next to each other as products in 8 bits need them. dims: the head size, padded with zeros to a
        power of two.
    scales: fp32 [B, H, blocks, tiles], of values [B, H, dims].
    """

    values: Tensor
    scales: Tensor


@triton.jit
def _load_tile(
    x_ptr, starts_ptr, sizes_ptr, x_batch, x_head, x_token, heads,
    HEAD_DIM: tl.constexpr, DIM: tl.constexpr, TILES: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One tile of a block, fp32 [TILE, DIM], zeros past the block and past the head; and where it has numbers."""
    block, tile = tl.program_id(0) // TILES, tl.program_id(0) % TILES
    line = tl.program_id(1)
    rows, dims = tile * TILE + tl.arange(0, TILE), tl.arange(0, DIM)
    inside = (rows[:, None] < tl.load(sizes_ptr + block)) & (dims[None, :] < HEAD_DIM)
    token = tl.load(starts_ptr + block).to(tl.int64) + rows
    x_ptr += (line // heads).to(tl.int64) * x_batch + (line % heads).to(tl.int64) * x_head
    x = tl.load(x_ptr + token[:, None] * x_token + dims[None, :], mask=inside, other=0.0)
    return x.to(tl.float32), inside


@triton.jit(do_not_specialize=("heads",))
def _int8_kernel(
    x_ptr, mean_ptr, out_ptr, scales_ptr, starts_ptr, sizes_ptr, x_batch, x_head, x_token, heads, factor,
    HEAD_DIM: tl.constexpr, DIM: tl.constexpr, TILES: tl.constexpr, TILE: tl.constexpr, MEAN: tl.constexpr,
    TINY: tl.constexpr,
):  # fmt: skip
    """Each program quantises one tile of one block of one head. x: [B, H, tokens, HEAD_DIM]; mean: [BH, HEAD_DIM]."""
    x, inside = _load_tile(
        x_ptr, starts_ptr, sizes_ptr, x_batch, x_head, x_token, heads, HEAD_DIM, DIM, TILES, TILE
    )  # fmt: skip
    dims = tl.arange(0, DIM)
    if MEAN:
        mean = tl.load(mean_ptr + tl.program_id(1) * HEAD_DIM + dims, mask=dims < HEAD_DIM, other=0.0)
        x = tl.where(inside, x - mean[None, :], 0.0)
    scale = tl.maximum(tl.max(tl.max(tl.abs(x), 1), 0), TINY) / 127.0
    x = x / scale
    x += tl.where(x >= 0, 0.5, -0.5)  # the conversion cuts the rest off
    place = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    slots = tl.arange(0, TILE)
    tl.store(out_ptr + (place * TILE + slots[:, None]) * DIM + dims[None, :], x.to(tl.int8))
    tl.store(scales_ptr + place, scale * factor)


@triton.jit(do_not_specialize=("heads",))
def _values_kernel(
    x_ptr, scales_ptr, out_ptr, starts_ptr, sizes_ptr, x_batch, x_head, x_token, heads,
    HEAD_DIM: tl.constexpr, DIM: tl.constexpr, TILES: tl.constexpr, TILE: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """Each program scales one tile, rounds it to out's dtype, and stores it transposed. scales: [BH, DIM]."""
    x, _ = _load_tile(x_ptr, starts_ptr, sizes_ptr, x_batch, x_head, x_token, heads, HEAD_DIM, DIM, TILES, TILE)
    dims, slots = tl.arange(0, DIM), tl.arange(0, TILE)
    x = x / tl.load(scales_ptr + tl.program_id(1) * DIM + dims)[None, :]
    # e4m3fn has no infinity: a quotient that rounding leaves above the largest number would become NaN.
    x = tl.minimum(tl.maximum(x, -LARGEST), LARGEST)
    place = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    tile = out_ptr + (place * DIM + dims[:, None]) * TILE + slots[None, :]
    tl.store(tile, tl.trans(x).to(out_ptr.dtype.element_ty))


def quantise_rows(x: Tensor, layout: BlockLayout, tile: int, factor: float = 1.0, mean: Tensor | None = None) -> Tiles:
    """Queries or keys [B, H, tokens, D] in block order, unit stride in the last axis, as int8.

    factor: goes into the scales. mean: fp32 [B, H, D], contiguous, is subtracted first.
    """
    shape, where, constants = _in_tiles(x, layout, tile)
    out = torch.empty(*shape, tile, constants["DIM"], dtype=torch.int8, device=x.device)
    scales = torch.empty(shape, dtype=torch.float32, device=x.device)
    with on_device(x):
        _int8_kernel[(shape[2] * shape[3], shape[0] * shape[1])](
            x, scales if mean is None else mean, out, scales, *where, factor,
            MEAN=mean is not None, TINY=_TINY, **constants,
        )  # fmt: skip
    return Tiles(out, scales)


def quantise_values(x: Tensor, layout: BlockLayout, tile: int, dtype: torch.dtype) -> Tiles:
    """Values [B, H, tokens, D], as above, in a dtype of `LARGEST`, transposed within each tile."""
    shape, where, constants = _in_tiles(x, layout, tile)
    largest = torch.linalg.vector_norm(x, torch.inf, dim=2, dtype=torch.float32)
    scales = F.pad(largest, (0, constants["DIM"] - x.shape[-1])).clamp_(min=_TINY) / LARGEST[dtype]
    out = torch.empty(*shape, constants["DIM"], tile, dtype=dtype, device=x.device)
    with on_device(x):
        _values_kernel[(shape[2] * shape[3], shape[0] * shape[1])](
            x, scales, out, *where, LARGEST=LARGEST[dtype], **constants
        )
    return Tiles(out, scales)


def _in_tiles(x: Tensor, layout: BlockLayout, tile: int) -> tuple[tuple[int, ...], tuple[Any, ...], dict[str, int]]:
    """The number of tiles [B, H, blocks, tiles per block], and what both kernels take after their own arguments."""
    batch, heads, _, head_dim = x.shape
    tiles = triton.cdiv(layout.chunk.volume, tile)
    where = layout.starts(x.device), layout.sizes(x.device), *x.stride()[:3], heads
    dim = max(32, triton.next_power_of_2(head_dim))  # products in 8 bits are over 32 numbers at a time
    return (batch, heads, layout.blocks.volume, tiles), where, {
        "HEAD_DIM": head_dim, "DIM": dim, "TILES": tiles, "TILE": tile,
    }  # fmt: skip
