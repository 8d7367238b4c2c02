"""Shared by the attention kernels: the steps of the online softmax, and the arguments that are not specialised."""

from __future__ import annotations

import triton
import triton.language as tl

# Arguments that depend on the video's size and speed up no load. Specialised, they would cause many compilations.
SIZES = ("heads", "q_blocks", "width")


@triton.jit
def first_token(row_tokens, entry, CHUNK: tl.constexpr, REGULAR: tl.constexpr):
    """The first token of a listed block: of REGULAR layouts the list has the number, of others the token."""
    listed = tl.load(row_tokens + entry)
    return listed * CHUNK if REGULAR else listed


@triton.jit
def online_softmax_update(acc, row_max, row_sum, scores, values, scale_log2, PRECISION: tl.constexpr):
    new_max = tl.maximum(row_max, tl.max(scores, 1) * scale_log2)
    probs = tl.exp2(scores * scale_log2 - new_max[:, None])
    decay = tl.exp2(row_max - new_max)
    row_sum = row_sum * decay + tl.sum(probs, 1)
    acc = tl.dot(probs.to(values.dtype), values, acc * decay[:, None], input_precision=PRECISION)
    return acc, new_max, row_sum


@triton.jit
def store_output(out_tile, acc, row_sum, inside):
    """End the softmax. A query block with an empty list attends to nothing: zeros, not 0 / 0."""
    out = acc / tl.where(row_sum == 0.0, 1.0, row_sum)[:, None]
    tl.store(out_tile, out.to(out_tile.dtype.element_ty), mask=inside)
