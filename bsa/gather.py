"""The torch backend: gather each query block's key blocks, then run dense attention on what was gathered.

Works on any device and dtype, and is differentiable in q, k and v (the choice of blocks is not).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bsa.layout import BlockLayout
from bsa.selection import BlockSelection

# Gathered keys and values per CPU step. CPU time is the same from 1 to 32 MiB; fewer steps mean fewer
# points where the threads wait for each other, which matters on a busy machine.
_CPU_STEP_BYTES = 16 << 20


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
    """q, k, v: block-major [B, H, N, C, D]; returns block-major attention output like q.

    uniform: every count equals S, the selection's width. Then nothing here waits for the device.
    Rows for q's padding hold unspecified finite values.
    """
    batch, heads = q.shape[:2]
    q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    indices, counts = selection.indices.flatten(0, 1), selection.counts.flatten(0, 1)
    if _in_steps(q.device):
        heads_in_turn = zip(q, k, v, indices, counts, strict=True)
        out = torch.stack([_by_groups(*head, q_layout, k_layout, scale, uniform) for head in heads_in_turn])
    else:
        if not uniform:
            indices = indices[..., : int(counts.max())]
        out = _all_at_once(q, k, v, indices, counts, k_layout, scale, uniform)
    return out.unflatten(0, (batch, heads))


def _in_steps(device: torch.device) -> bool:
    """A CPU wants small steps that stay in cache; a GPU wants one launch and has the memory for it."""
    return device.type == "cpu"


def _all_at_once(q, k, v, indices, counts, k_layout, scale, uniform):
    """[BH, N, C, D] tensors: one gather and one SDPA call, with query blocks in the place of heads."""
    groups, key_blocks, chunk, dim = k.shape
    query_blocks = q.shape[1]
    first = torch.arange(groups, device=q.device)[:, None, None] * key_blocks
    flat = (indices + first).flatten()
    shape = (groups, query_blocks, indices.shape[-1] * chunk, dim)
    keys = _GatherBlocks.apply(k.flatten(0, 1), flat).view(shape)
    values = _GatherBlocks.apply(v.flatten(0, 1), flat).view(shape)
    mask = _token_mask(indices, counts, k_layout, uniform)
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scale)


def _by_groups(q, k, v, indices, counts, q_layout, k_layout, scale, uniform):
    """[N, C, D] tensors of one head: small groups of query blocks, so that gathered keys stay in cache."""
    sizes, order = q_layout.sizes(q.device), None
    if q_layout.ragged or not uniform:
        # Neighbours in this order are alike in size and in number of kept blocks: little is computed in vain.
        order = (sizes.long() * k_layout.blocks.volume + counts).argsort(descending=True)
        q, indices, counts, sizes = q[order], indices[order], counts[order], sizes[order]
    outputs, start = [], 0
    while start < len(q):
        # With mixed counts a group can hold blocks of the next size, and then a later one with more kept blocks.
        width = indices.shape[-1] if uniform else int(counts[start])
        step = max(1, _CPU_STEP_BYTES // (2 * width * k[0].numel() * k.element_size()))
        group = slice(start, start + step)
        if not uniform:
            width = int(counts[group].max())
        picked = indices[group, :width]
        shape = (len(picked), 1, width * k.shape[1], k.shape[2])
        keys = _GatherBlocks.apply(k, picked.flatten()).view(shape)
        values = _GatherBlocks.apply(v, picked.flatten()).view(shape)
        mask = _token_mask(picked, counts[group], k_layout, uniform)
        mask = None if mask is None else mask[:, None]
        queries = q[group, None, : int(sizes[start])]
        out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)
        outputs.append(F.pad(out[:, 0], (0, 0, 0, q.shape[1] - queries.shape[2])))
        start += step
    out = torch.cat(outputs)
    return out if order is None else out[order.argsort()]


def _token_mask(indices, counts, k_layout, uniform):
    """Boolean [..., 1, S * C], true for real tokens of kept blocks; None when that is all of them."""
    if uniform and not k_layout.ragged:
        return None
    sizes = k_layout.sizes(indices.device)[indices]
    if not uniform:
        sizes = sizes.masked_fill(torch.arange(indices.shape[-1], device=indices.device) >= counts[..., None], 0)
    mask = torch.arange(k_layout.chunk.volume, device=indices.device) < sizes[..., None]
    return mask.flatten(-2)[..., None, :]


class _GatherBlocks(torch.autograd.Function):
    """Rows of [N, C, D] by index. The gradient sums in fp32: a popular block is gathered many times."""

    @staticmethod
    def forward(ctx, blocks, indices):
        ctx.save_for_backward(indices)
        ctx.count = len(blocks)
        return blocks.index_select(0, indices)

    @staticmethod
    def backward(ctx, grad):
        (indices,) = ctx.saved_tensors
        total = grad.new_zeros(ctx.count, *grad.shape[1:], dtype=torch.promote_types(grad.dtype, torch.float32))
        return total.index_add_(0, indices, grad.to(total.dtype)).to(grad.dtype), None
