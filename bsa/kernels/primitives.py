"""What the attention kernels share: the step of the online softmax, and which arguments are not specialised."""

from __future__ import annotations

import triton
import triton.language as tl

# Arguments that follow from the video's size and help no load: specialised, they would compile anew for many sizes.
SIZES = ("heads", "q_blocks", "width")


@triton.jit
def online_softmax_update(acc, row_max, row_sum, scores, values, scale_log2, PRECISION: tl.constexpr):
    new_max = tl.maximum(row_max, tl.max(scores, 1) * scale_log2)
    probs = tl.exp2(scores * scale_log2 - new_max[:, None])
    decay = tl.exp2(row_max - new_max)
    row_sum = row_sum * decay + tl.sum(probs, 1)
    acc = tl.dot(probs.to(values.dtype), values, acc * decay[:, None], input_precision=PRECISION)
    return acc, new_max, row_sum
