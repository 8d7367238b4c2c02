"""Converts raster order to block order and back in one pass over memory, and computes the mean of every block."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bsa.kernels.launch import on_device
from bsa.layout import BlockLayout

_ROWS = 64  # tokens per step of a program


@triton.jit(do_not_specialize=("heads", "blocks"))
def _to_order_kernel(
    x_ptr, out_ptr, means_ptr, order_ptr, starts_ptr, sizes_ptr, x_batch, x_head, x_token, tokens, heads, blocks,
    HEAD_DIM: tl.constexpr, DIM: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, MEANS: tl.constexpr,
):  # fmt: skip
    """Each program copies one block of one head. x: [B, H, tokens, HEAD_DIM], any strides; out: contiguous."""
    block, line = tl.program_id(0), tl.program_id(1).to(tl.int64)
    start, size = tl.load(starts_ptr + block), tl.load(sizes_ptr + block)
    dims = tl.arange(0, DIM)
    total = tl.zeros([DIM], tl.float32)
    x_ptr += (line // heads) * x_batch + (line % heads) * x_head
    for first in range(0, CHUNK, ROWS):
        rows = first + tl.arange(0, ROWS)
        token = tl.load(order_ptr + start + rows, mask=rows < size, other=0)
        # [ROWS, DIM]
        inside = (rows[:, None] < size) & (dims[None, :] < HEAD_DIM)
        x = tl.load(x_ptr + token[:, None] * x_token + dims[None, :], mask=inside, other=0.0)
        tl.store(out_ptr + (line * tokens + start + rows[:, None]) * HEAD_DIM + dims[None, :], x, mask=inside)
        if MEANS:
            total += tl.sum(x.to(tl.float32), 0)
    if MEANS:
        tl.store(means_ptr + (line * blocks + block) * HEAD_DIM + dims, total / size, mask=dims < HEAD_DIM)


@triton.jit
def _from_order_kernel(
    x_ptr, out_ptr, order_ptr, tokens, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    line = tl.program_id(1).to(tl.int64) * tokens
    dims = tl.arange(0, DIM)
    token = tl.load(order_ptr + rows, mask=rows < tokens, other=0)
    inside = (rows[:, None] < tokens) & (dims[None, :] < HEAD_DIM)
    x = tl.load(x_ptr + (line + rows[:, None]) * HEAD_DIM + dims[None, :], mask=inside)
    tl.store(out_ptr + (line + token[:, None]) * HEAD_DIM + dims[None, :], x, mask=inside)


def to_order(x: Tensor, layout: BlockLayout, means: bool = True) -> tuple[Tensor, Tensor | None]:
    """Convert x [B, H, S, D] from raster order, any strides, to contiguous block order.

    Returns the converted tensor and the fp32 block means [B, H, N, D], or None for them without `means`.
    """
    x = x if x.stride(-1) == 1 else x.contiguous()
    (batch, heads, tokens, dim), device, blocks = x.shape, x.device, layout.blocks.volume
    out = torch.empty(x.shape, dtype=x.dtype, device=device)
    pooled = torch.empty(batch, heads, blocks, dim, dtype=torch.float32, device=device) if means else None
    chunk = layout.chunk.volume
    with on_device(x):
        _to_order_kernel[(blocks, batch * heads)](
            x, out, out if pooled is None else pooled, layout.order(device), layout.starts(device),
            layout.sizes(device), *x.stride()[:3], tokens, heads, blocks,
            HEAD_DIM=dim, DIM=triton.next_power_of_2(dim), CHUNK=chunk,
            ROWS=min(_ROWS, triton.next_power_of_2(chunk)), MEANS=means, num_warps=4,
        )  # fmt: skip
    return out, pooled


def from_order(x: Tensor, layout: BlockLayout) -> Tensor:
    """Convert contiguous block order [B, H, S, D] back to contiguous raster order."""
    batch, heads, tokens, dim = x.shape
    out = torch.empty_like(x)
    with on_device(x):
        _from_order_kernel[(triton.cdiv(tokens, _ROWS), batch * heads)](
            x, out, layout.order(x.device), tokens,
            HEAD_DIM=dim, DIM=triton.next_power_of_2(dim), ROWS=_ROWS, num_warps=4,
        )  # fmt: skip
    return out
