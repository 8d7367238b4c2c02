"""The torch backend: gathers each query block's key blocks, then runs dense attention on them.

It works on any device and dtype, and is differentiable in q, k and v, but not in the selection of blocks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bsa.block_selection import BlockSelection
from bsa.layout import BlockLayout
from bsa.products import attend_by_products, takes_products

# Bytes of gathered keys and values per CPU step: small enough to stay in the cache, large enough that the threads
# seldom wait for each other.
_CPU_STEP_BYTES = 8 << 20


def gathered_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    selection: BlockSelection,
    q_layout: BlockLayout,
    k_layout: BlockLayout,
    scale: float,
    uniform: bool,
) -> Tensor:
    """Attention over the selected blocks. q, k, v: block-major [B, H, N, C, D]. Returns the output, like q.

    uniform: whether every count equals S, the selection's width. Then nothing here waits for the device.
    Rows for q's padding hold unspecified finite values.
    """
    batch, heads = q.shape[:2]
    q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    indices, counts = selection.indices.flatten(0, 1), selection.counts.flatten(0, 1)
    run = _in_steps if _prefers_steps(q.device) else _all_at_once
    out: Tensor = run(q, k, v, indices, counts, q_layout, k_layout, scale, uniform).unflatten(0, (batch, heads))
    return out


def _prefers_steps(device: torch.device) -> bool:
    """True for a CPU, which is fastest in small steps that stay in the cache. A GPU is fastest with one launch."""
    return device.type == "cpu"


def _all_at_once(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    counts: Tensor,
    q_layout: BlockLayout,
    k_layout: BlockLayout,
    scale: float,
    uniform: bool,
) -> Tensor:
    """Attend with one gather and one SDPA call, with query blocks as heads. Tensors are [BH, N, C, D]."""
    if not uniform:
        indices = indices[..., : int(counts.max())]
    groups, key_blocks, chunk, dim = k.shape
    first = torch.arange(groups, device=q.device)[:, None, None] * key_blocks
    flat = (indices + first).flatten()
    shape = (groups, q.shape[1], indices.shape[-1] * chunk, dim)
    keys, values = (_gather(x.flatten(0, 1), flat).view(shape) for x in (k, v))
    mask = _token_mask(indices, counts, k_layout, uniform)
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scale)


def _in_steps(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    counts: Tensor,
    q_layout: BlockLayout,
    k_layout: BlockLayout,
    scale: float,
    uniform: bool,
) -> Tensor:
    """Attend head by head, a few query blocks at a time. Tensors are [BH, N, C, D]."""
    sizes = q_layout.sizes(q.device).expand_as(counts)
    reordered = q_layout.ragged or not uniform
    if reordered:
        # Sorted by kept blocks, then by size, so that blocks in one step are alike and little padding is computed.
        order = (counts.long() * q.shape[2] + sizes).argsort(dim=-1, descending=True)
        row = torch.arange(len(q))[:, None]
        q, indices, counts, sizes = q[row, order], indices[row, order], counts[row, order], sizes[row, order]

    training = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    products = takes_products(q, k, v)
    at_once = max(indices.shape[-1], _CPU_STEP_BYTES // (2 * k[0, 0].numel() * k.element_size()))
    scratch = q.new_empty(2 * at_once * k.shape[2] * q.shape[2]) if products else None
    # All steps share one pair of buffers, because new memory would cost a page fault every 4 KiB.
    buffers = (None, None) if training else k.new_empty(2, at_once, *k.shape[2:])
    outputs = []
    result = None if training else (torch.zeros_like if reordered else torch.empty_like)(q)
    for head in range(len(q)):
        start = 0
        while start < q.shape[1]:
            width = indices.shape[-1] if uniform else int(counts[head, start])
            step = slice(start, start + at_once // width)
            start = step.stop
            picked = indices[head, step, :width]
            gathered = [_gather(x[head], picked.flatten(), buffer) for x, buffer in zip((k, v), buffers, strict=True)]
            keys, values = (x.view(len(picked), 1, width * k.shape[2], k.shape[3]) for x in gathered)
            mask = _token_mask(picked, counts[head, step], k_layout, uniform)
            mask = None if mask is None else mask[:, None]
            rows = int(sizes[head, step].max()) if reordered else q.shape[2]
            queries = q[head, step, None, :rows]
            if products:
                some = (queries[:, 0], keys[:, 0], values[:, 0])
                out = attend_by_products(*some, scale, None if mask is None else mask[:, 0], scratch)
            else:
                out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)[:, 0]
            if result is not None:
                result[head, step, :rows] = out
            else:
                outputs.append(out if rows == q.shape[2] else F.pad(out, (0, 0, 0, q.shape[2] - rows)))
    out = torch.cat(outputs).view(q.shape) if result is None else result
    return out[row, order.argsort(dim=-1)] if reordered else out


def _gather(blocks: Tensor, indices: Tensor, buffer: Tensor | None = None) -> Tensor:
    if buffer is None:
        gathered: Tensor = _GatherBlocks.apply(blocks, indices)  # type: ignore[no-untyped-call]  # so in PyTorch
        return gathered
    return torch.index_select(blocks, 0, indices, out=buffer[: len(indices)])


def _token_mask(indices: Tensor, counts: Tensor, k_layout: BlockLayout, uniform: bool) -> Tensor | None:
    """Boolean [..., 1, S * C], true for real tokens of kept blocks; None if all of them are."""
    if uniform and not k_layout.ragged:
        return None
    sizes = k_layout.sizes(indices.device)[indices]
    if not uniform:
        sizes = sizes.masked_fill(torch.arange(indices.shape[-1], device=indices.device) >= counts[..., None], 0)
    mask = torch.arange(k_layout.chunk.volume, device=indices.device) < sizes[..., None]
    return mask.flatten(-2)[..., None, :]


class _GatherBlocks(torch.autograd.Function):
    """Gathers blocks of [N, C, D] by index. The gradient is summed in fp32, because a block may be gathered often."""

    @staticmethod
    def forward(ctx: Any, blocks: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.count = len(blocks)
        return blocks.index_select(0, indices)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (indices,) = ctx.saved_tensors
        total = grad.new_zeros(ctx.count, *grad.shape[1:], dtype=torch.promote_types(grad.dtype, torch.float32))
        return total.index_add_(0, indices, grad.to(total.dtype)).to(grad.dtype), None
