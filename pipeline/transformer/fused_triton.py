"""Triton kernels for the elementwise work of a LongCat block. Each reads its tensors once and writes them once.

Forward only. Everything between load and store is fp32. `fused.py` has the same functions in PyTorch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bsa import BlockLayout
from bsa.cells import cells_of
from bsa.kernels.launch import on_device
from pipeline.transformer.forward import embed_patches
from pipeline.weights.fp8 import LARGEST, Quantised

FP8 = torch.float8_e4m3fn
_ROWS = 8  # tokens per program, in sequence: neighbours mostly share a frame, so its modulation stays in L1


@triton.jit
def _store_row(out_ptr, scales_ptr, place, row, out, inside, LARGEST: tl.constexpr, FP8: tl.constexpr):
    """Store one row of fp32 numbers, rounded to out's dtype. With FP8, first scale its largest number to LARGEST."""
    if FP8:
        scale = tl.maximum(tl.max(tl.abs(tl.where(inside, out, 0.0)), 0), 1e-12) / LARGEST
        tl.store(scales_ptr + row, scale)
        out = tl.minimum(tl.maximum(out / scale, -LARGEST), LARGEST)
    tl.store(out_ptr + place, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=("tokens",))
def _residual_norm_kernel(
    x_ptr, branch_ptr, gate_ptr, out_ptr, scales_ptr, gain_ptr, shift_ptr, frames_ptr,
    gate_batch, gate_frame, gain_batch, gain_frame, tokens, eps,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, BRANCH: tl.constexpr, GATE: tl.constexpr,
    NORM: tl.constexpr, FRAMES: tl.constexpr, LARGEST: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """x += gate[frame] * branch in place, then out = norm(x) * gain[frame] + shift[frame]; x [B, tokens, SIZE]."""
    batch = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < SIZE
    for step in range(ROWS):
        token = tl.program_id(0) * ROWS + step
        if token < tokens:
            place = (batch * tokens + token) * SIZE + column
            frame = tl.load(frames_ptr + token) if FRAMES else 0
            x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
            if BRANCH:
                branch = tl.load(branch_ptr + place, mask=inside, other=0.0).to(tl.float32)
                if GATE:
                    gate = gate_ptr + batch * gate_batch + frame * gate_frame + column
                    branch *= tl.load(gate, mask=inside, other=0.0)
                rounded = (x + branch).to(x_ptr.dtype.element_ty)
                tl.store(x_ptr + place, rounded, mask=inside)
                x = rounded.to(tl.float32)
            if NORM:
                centred = tl.where(inside, x - tl.sum(x, 0) / SIZE, 0.0)
                normed = centred / tl.sqrt_rn(tl.sum(centred * centred, 0) / SIZE + eps)
                where = batch * gain_batch + frame * gain_frame + column
                gain = tl.load(gain_ptr + where, mask=inside, other=0.0)
                out = normed * gain + tl.load(shift_ptr + where, mask=inside, other=0.0)
                _store_row(out_ptr, scales_ptr, place, batch * tokens + token, out, inside, LARGEST, FP8)


@triton.jit
def _angles(cos_ptr, sin_ptr, start, size, row, half):
    """Load the rotary angles [rows, D/2] of a block's tokens."""
    place = (start + row[:, None]) * half.shape[0] + half[None, :]
    inside = row[:, None] < size
    return tl.load(cos_ptr + place, mask=inside, other=0.0), tl.load(sin_ptr + place, mask=inside, other=0.0)


@triton.jit(do_not_specialize=("tokens", "blocks"))
def _head_norm_kernel(
    x_ptr, weight_ptr, cos_ptr, sin_ptr, starts_ptr, sizes_ptr, means_ptr, cells_ptr, cell_sizes_ptr, cells_stride,
    tokens, blocks, eps,
    HEADS: tl.constexpr, DIM: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr,
    ROPE: tl.constexpr, LAYOUT: tl.constexpr, CELLS: tl.constexpr,
):  # fmt: skip
    """RMSNorm per head and rotary embedding, in place on x [B, tokens, HEADS, DIM], and the mean of each block, or of
    its CELLS cells, unless that is 0.

    One program handles one block of tokens and GROUP heads. If the block is one tile, its rotary angles stay in
    registers.
    """
    HALF: tl.constexpr = DIM // 2
    WIDE: tl.constexpr = CELLS if CELLS > 16 else 16  # what a product needs at least
    ONE_TILE: tl.constexpr = CHUNK <= TILE
    block = tl.program_id(0)
    batch = tl.program_id(2).to(tl.int64)
    start = tl.load(starts_ptr + block) if LAYOUT else block * CHUNK
    size = tl.load(sizes_ptr + block) if LAYOUT else tl.minimum(tokens - start, CHUNK)
    dim = tl.arange(0, DIM)
    half = tl.arange(0, HALF)
    # neighbouring channels form a pair
    weight_even = tl.load(weight_ptr + 2 * half).to(tl.float32)
    weight_odd = tl.load(weight_ptr + 2 * half + 1).to(tl.float32)
    if ROPE and ONE_TILE:
        cos, sin = _angles(cos_ptr, sin_ptr, start, size, tl.arange(0, TILE), half)
    for step in range(GROUP):
        head = tl.program_id(1) * GROUP + step
        if CELLS:
            total = tl.zeros([WIDE, DIM], tl.float32)
        else:
            total = tl.zeros([DIM], tl.float32)
        for first in range(0, CHUNK, TILE):
            row = first + tl.arange(0, TILE)
            inside = row[:, None] < size
            # [TILE, DIM]
            place = (batch * tokens + start + row[:, None]) * (HEADS * DIM) + head * DIM + dim[None, :]
            x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
            scale = 1.0 / tl.sqrt_rn(tl.sum(x * x, 1) / DIM + eps)
            # [TILE, HALF]
            even, odd = tl.split(tl.reshape(x, [TILE, HALF, 2]))
            even = even * scale[:, None] * weight_even[None, :]
            odd = odd * scale[:, None] * weight_odd[None, :]
            if ROPE:
                if not ONE_TILE:
                    cos, sin = _angles(cos_ptr, sin_ptr, start, size, row, half)
                even, odd = even * cos - odd * sin, odd * cos + even * sin
            out = tl.reshape(tl.join(even, odd), [TILE, DIM]).to(x_ptr.dtype.element_ty)
            tl.store(x_ptr + place, out, mask=inside)
            if CELLS:
                cell = tl.load(cells_ptr + block * cells_stride + row, mask=row < CHUNK, other=-1)
                member = (tl.arange(0, WIDE)[:, None] == cell[None, :]).to(out.dtype)
                total = tl.dot(member, tl.where(inside, out, 0.0), total, input_precision="ieee")
            elif LAYOUT:
                total += tl.sum(tl.where(inside, out.to(tl.float32), 0.0), 0)
        if CELLS:
            number = tl.arange(0, WIDE)
            within = number[:, None] < CELLS
            cell_size = tl.load(cell_sizes_ptr + block * CELLS + number, mask=number < CELLS, other=0.0)
            mean = (total / tl.maximum(cell_size, 1.0)[:, None]).to(means_ptr.dtype.element_ty)
            place = (((batch * HEADS + head) * blocks + block) * CELLS + number[:, None]) * DIM + dim[None, :]
            tl.store(means_ptr + place, mean, mask=within)
        elif LAYOUT:
            tl.store(means_ptr + ((batch * HEADS + head) * blocks + block) * DIM + dim, total / size)


@triton.jit
def _swiglu_kernel(a_ptr, b_ptr, count, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    a = tl.load(a_ptr + place, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(a_ptr + place, (a * b / (1.0 + tl.exp(-a))).to(a_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _quantise_kernel(
    a_ptr, b_ptr, out_ptr, scales_ptr, SIZE: tl.constexpr, BLOCK: tl.constexpr, LARGEST: tl.constexpr,
    SWIGLU: tl.constexpr,
):  # fmt: skip
    """Each program quantises one row of a, or of silu(a) * b."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < SIZE
    place = row * SIZE + column
    out = tl.load(a_ptr + place, mask=inside, other=0.0).to(tl.float32)
    if SWIGLU:
        b = tl.load(b_ptr + place, mask=inside, other=0.0).to(tl.float32)
        out = out * b / (1.0 + tl.exp(-out))
    _store_row(out_ptr, scales_ptr, place, row, out, inside, LARGEST, True)


embed = embed_patches


def residual_norm_(
    x: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    gain: Tensor | None,
    shift: Tensor | None,
    frames: Tensor | None,
    fp8: bool = False,
) -> Tensor | Quantised | None:
    """See `fused.residual_norm_`."""
    batch, tokens, size = x.shape
    out, scales = None if gain is None else torch.empty_like(x), None
    if fp8 and out is not None:
        out, scales = _empty(x)
    # x stands in for absent tensors, which the kernel never reads
    gate_strides = (0, 0) if gate is None else _strides(gate, batch)
    gain_strides = (0, 0) if gain is None else _strides(gain, batch)
    with on_device(x):
        _residual_norm_kernel[(triton.cdiv(tokens, _ROWS), batch)](
            x, x if branch is None else branch, x if gate is None else gate, x if out is None else out,
            x if scales is None else scales, x if gain is None else gain, x if shift is None else shift,
            x if frames is None else frames,
            *gate_strides, *gain_strides, tokens, 1e-6,
            SIZE=size, BLOCK=triton.next_power_of_2(size), ROWS=_ROWS, BRANCH=branch is not None,
            GATE=gate is not None, NORM=gain is not None, FRAMES=frames is not None,
            LARGEST=LARGEST, FP8=scales is not None, num_warps=8,
        )  # fmt: skip
    return out if out is None or scales is None else Quantised(out, scales)


def head_norm_(
    x: Tensor, weight: Tensor, rope: tuple[Tensor, Tensor] | None, layout: BlockLayout | None, cells: bool = False
) -> Tensor | None:
    """See `fused.head_norm_`. The head size must be a power of two. The means of cells have x's dtype."""
    batch, tokens, heads, dim = x.shape
    ordered = layout is not None
    chunk = 64 if layout is None else layout.chunk.volume
    blocks = triton.cdiv(tokens, chunk) if layout is None else layout.blocks.volume
    means, table, cell_sizes, count = None, x, x, 0
    if layout is not None and cells:
        its = cells_of(layout, x.device)
        table, cell_sizes, count = its.cell_of_slot, its.sizes, its.sizes.shape[1]
        means = torch.empty(batch, heads, blocks, count, dim, dtype=x.dtype, device=x.device)
    elif ordered:
        means = torch.empty(batch, heads, blocks, dim, dtype=torch.float32, device=x.device)
    cos, sin = (x, x) if rope is None else rope
    group = 8 if heads % 8 == 0 else 1
    tile = min(64, max(16, triton.next_power_of_2(chunk)) if cells else triton.next_power_of_2(chunk))
    starts, sizes = (x, x) if layout is None else (layout.starts(x.device), layout.sizes(x.device))
    with on_device(x):
        _head_norm_kernel[(blocks, heads // group, batch)](
            x, weight, cos, sin, starts, sizes, means if ordered else x, table, cell_sizes,
            table.stride(0) if count and len(table) > 1 else 0, tokens, blocks, 1e-6,
            HEADS=heads, DIM=dim, CHUNK=chunk, TILE=tile, GROUP=group,
            ROPE=rope is not None, LAYOUT=ordered, CELLS=count, num_warps=max(4, tile // 8),
        )  # fmt: skip
    return means


def swiglu_(a: Tensor, b: Tensor, fp8: bool = False) -> Tensor | Quantised:
    """See `fused.swiglu_`."""
    if fp8:
        return _quantise(a, b)
    with on_device(a):
        _swiglu_kernel[(triton.cdiv(a.numel(), 4096),)](a, b, a.numel(), BLOCK=4096, num_warps=8)
    return a


def quantise(x: Tensor) -> Quantised:
    """See `fp8.quantise`."""
    return _quantise(x.contiguous(), None)


def _quantise(a: Tensor, b: Tensor | None) -> Quantised:
    out, scales = _empty(a)
    size = a.shape[-1]
    block = triton.next_power_of_2(size)
    with on_device(a):
        _quantise_kernel[(scales.numel(),)](
            a, a if b is None else b, out, scales, SIZE=size, BLOCK=block, LARGEST=LARGEST, SWIGLU=b is not None,
            num_warps=min(16, max(1, block // 512)),
        )  # fmt: skip
    return Quantised(out, scales)


def _empty(x: Tensor) -> Quantised:
    scales = torch.empty(*x.shape[:-1], 1, dtype=torch.float32, device=x.device)
    return Quantised(torch.empty_like(x, dtype=FP8), scales)


def _strides(x: Tensor, batch: int) -> tuple[int, int]:
    return (x.stride(0) if x.shape[0] == batch > 1 else 0), (x.stride(1) if x.shape[1] > 1 else 0)
