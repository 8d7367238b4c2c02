"""Attention on a CPU in bfloat16, as two batched matrix products with a softmax in between.

PyTorch's own attention for CPUs works through small tiles, each a product of its own, and is hardly faster in bfloat16
than in fp32. Products over many rows and keys at a time are (benchmarks/attention_cpu.py).

PyTorch's bfloat16 products round their results to bfloat16, which is too coarse for scores: 2^-9 of a score of 30 is 6%
of a weight. Only the largest scores of a row matter, and a softmax does not change when one number is added to all
scores. So each row starts at minus its largest score over a sample of the keys, to which the product is added before it
is rounded: the scores that count are then near zero, where numbers are fine. On the embedded checkpoint's queries and
keys this is 1.9 to 2.7e-3 from exact attention. Without the shift it would be 4.6 to 8.8e-3; PyTorch's own attention
has 1.7e-3.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SCORE_BYTES = 8 << 20  # scores at one time: a part of the cache that all cores share
LEAST_ROWS = 128  # of one product, for its speed
SAMPLE = 64  # keys by which the largest score of a row is guessed


def takes_products(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether attention of these tensors runs as products: on a CPU, in bfloat16, without gradients."""
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return False
    return not (torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)))


def full_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`F.scaled_dot_product_attention` without a mask, [B, H, Q, D] over [B, H, S, D], by products where it can."""
    if not takes_products(q, k, v):
        return F.scaled_dot_product_attention(q, k, v)
    shape, scale = q.shape, 1 / math.sqrt(q.shape[-1])
    q, k, v = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v))
    return attend_by_products(q, k, v, scale).view(shape)


def attend_by_products(
    q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None, scratch: Tensor | None = None
) -> Tensor:
    """softmax(scale * q @ k^T) @ v for each of G groups, q [G, R, D] over k, v [G, S, D], all bfloat16.

    mask: bool [G, 1, S], true for keys that count, the first of each group among them; None for all of them.
    scratch: bfloat16 [2 * G * R * S] or more, for calls that follow each other: new memory costs page faults.
    Returns [G, R, D], contiguous.
    """
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    groups, rows, keys = q.shape[0], q.shape[1], k.shape[1]
    most_rows = SCORE_BYTES // (keys * q.element_size())  # rows of scores at one time
    at_once = min(groups, max(1, most_rows // min(rows, LEAST_ROWS)))
    step = min(rows, max(1, most_rows // (at_once * LEAST_ROWS)) * LEAST_ROWS)
    if scratch is None:
        scratch = q.new_empty(2 * at_once * step * keys)
    for first in range(0, groups, at_once):
        part = slice(first, first + at_once)
        some = k[part].mT, v[part], None if mask is None else mask[part]
        for row in range(0, rows, step):
            _attend(q[part, row : row + step], *some, scale, out[part, row : row + step], scratch)
    return out


def _attend(
    q: Tensor, keys: Tensor, v: Tensor, mask: Tensor | None, scale: float, out: Tensor, scratch: Tensor
) -> None:
    """One step: q [G, R, D], keys [G, D, S], v [G, S, D]. Writes to out and scratch."""
    # An odd step, because keys a power of two apart are often in one column of the picture.
    step = max(1, keys.shape[-1] // SAMPLE) | 1
    sampled = torch.bmm(q, keys.mT[:, ::step].contiguous().mT)  # PyTorch's own copy of them would take long
    if mask is not None:
        sampled.masked_fill_(~mask[..., ::step], -math.inf)
    size = q.shape[0] * q.shape[1] * keys.shape[-1]
    scores, weights = (scratch[n * size : (n + 1) * size].view(*q.shape[:2], -1) for n in range(2))
    scores.copy_(sampled.amax(-1, keepdim=True).mul_(-scale).expand_as(scores))
    if mask is not None:
        scores.masked_fill_(~mask, -math.inf)
    torch.baddbmm(scores, q, keys, alpha=scale, out=scores)
    torch.softmax(scores, -1, out=weights)
    torch.bmm(weights, v, out=out)
