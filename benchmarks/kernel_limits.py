"""Finds the limits of the attention kernel on a GPU: its loop without some parts, other layouts, other list orders.

    python benchmarks/kernel_limits.py            # writes benchmarks/results/kernel_limits.json

24x44x80 tokens, 32 heads of 128, bf16, chunks 4x4x4, sparsity 0.9375, tiles of 64 queries and 64 keys through tensor
descriptors. "loads only" brings every key and value tile into shared memory and adds it up, which shows the speed of
the L2 cache and the copy engine. "products only" multiplies one tile again and again, which shows the speed of the
tensor cores and the softmax without loads. "TB/s" counts key and value tiles.
"""

from functools import partial

import torch
import triton
import triton.language as tl
from attention_case import Case
from gpu import Rows, arguments, device_for, milliseconds
from triton.tools.tensor_descriptor import TensorDescriptor

from bsa import Grid
from bsa.block_selection import BlockSelection
from bsa.kernels.attend import attend_tokens
from bsa.variants import VARIANTS


@triton.jit
def _loads_kernel(k_desc, v_desc, out_ptr, indices_ptr, q_blocks, width, row_stride, DIM: tl.constexpr):
    head = tl.program_id(1)
    line = head.to(tl.int64) * q_blocks + tl.program_id(0)
    seen = tl.zeros([64, DIM], tl.bfloat16)
    for step in range(0, width):
        row = head * row_stride + tl.load(indices_ptr + line * width + step) * 64
        seen += k_desc.load([row, 0]) + v_desc.load([row, 0])
    rows, dims = tl.arange(0, 64), tl.arange(0, DIM)
    tl.store(out_ptr + (line * 64 + rows[:, None]) * DIM + dims[None, :], seen)


@triton.jit
def _products_kernel(
    q_ptr, k_desc, v_desc, out_ptr, q_blocks, width, scale_log2, SOFTMAX: tl.constexpr, DIM: tl.constexpr
):
    line = tl.program_id(1).to(tl.int64) * q_blocks + tl.program_id(0)
    rows, dims = tl.arange(0, 64), tl.arange(0, DIM)
    q = tl.load(q_ptr + (line * 64 + rows[:, None]) * DIM + dims[None, :])
    k, v = k_desc.load([0, 0]), v_desc.load([0, 0])
    acc = tl.zeros([64, DIM], tl.float32)
    row_max = tl.full([64], float("-inf"), tl.float32)
    row_sum = tl.zeros([64], tl.float32)
    for _ in range(0, width):
        # The product is the same in every step; the running sum keeps the compiler from moving it out of the loop.
        scores = tl.dot(q, tl.trans(k), tl.zeros([64, 64], tl.float32) + (row_sum * 1e-30)[:, None])
        if SOFTMAX:
            new_max = tl.maximum(row_max, tl.max(scores, 1) * scale_log2)
            probs = tl.exp2(scores * scale_log2 - new_max[:, None])
            decay = tl.exp2(row_max - new_max)
            row_sum = row_sum * decay + tl.sum(probs, 1)
            acc = tl.dot(probs.to(tl.bfloat16), v, acc * decay[:, None])
            row_max = new_max
        else:
            row_sum += 1
            acc = tl.dot(scores.to(tl.bfloat16), v, acc)
    tl.store(out_ptr + (line * 64 + rows[:, None]) * DIM + dims[None, :], acc.to(tl.bfloat16))


def whole(case: Case, selection: BlockSelection, name: str, outside: bool) -> dict:
    """Time the real kernel. outside: whether the memory layout is [B, H, S, D], with heads before tokens."""
    q, k, v = (x.transpose(1, 2) for x in (case.q, case.k, case.v))
    if outside:
        q, k, v = (x.contiguous() for x in (q, k, v))
    out = torch.empty_like(q)

    def run():
        attend_tokens(q, k, v, selection, case.layout, case.layout, case.scale, out, variant=VARIANTS[name])

    return rates(case, milliseconds(run, case.device))


def rates(case: Case, timed: dict) -> dict:
    moved = case.pairs / 64 * 2 * case.q.shape[3] * 2
    return timed | {"tflops": case.flops / timed["ms"] / 1e9, "tb_per_s": moved / timed["ms"] / 1e9}


def part(case: Case, selection: BlockSelection, which: str) -> dict:
    q, k, v = (x.transpose(1, 2).contiguous().flatten(0, 2) for x in (case.q, case.k, case.v))
    out, (_, tokens, heads, dim) = torch.empty_like(q), case.q.shape
    k_desc, v_desc = (TensorDescriptor(x, list(x.shape), [dim, 1], [64, dim]) for x in (k, v))
    blocks, width = selection.indices.shape[2:]
    options = {"DIM": dim, "num_warps": 4, "num_stages": 3}
    grid = (blocks, heads)
    if which == "loads only":
        run = partial(_loads_kernel[grid], k_desc, v_desc, out, selection.indices, blocks, width, tokens, **options)
    else:
        run = partial(
            _products_kernel[grid], q, k_desc, v_desc, out, blocks, width, case.scale * 1.4427,
            SOFTMAX="softmax" in which, **options,
        )  # fmt: skip
    return rates(case, milliseconds(run, case.device))


def main() -> None:
    parser = arguments(__doc__, "kernel_limits")
    args = parser.parse_args()
    device = device_for(parser, False)
    rows = Rows(args, device)
    case = Case(Grid(24, 44, 80), Grid(4, 4, 4), 0.9375, 32, 128, torch.bfloat16, device)
    ascending = BlockSelection(case.selection.indices.sort(-1).values, case.selection.counts, case.selection.counts)
    shuffle = torch.rand(ascending.indices.shape, device=device).argsort(-1)
    shuffled = BlockSelection(ascending.indices.gather(-1, shuffle), ascending.counts, ascending.counts)
    # 2 MB of keys and values per head instead of 43 stay in the cache
    near = BlockSelection(ascending.indices % 64, ascending.counts, ascending.counts)
    for which in ("loads only", "products only", "products and softmax only"):
        rows.measure({"what": which, "list": "ascending"}, partial(part, case, ascending, which))
    rows.measure({"what": "loads only", "list": "near"}, partial(part, case, near, "loads only"))
    for name in ("pointers-64x64-w4-s3", "descriptors-64x64-w4-s3", "descriptors-64x32-w4-s5"):
        for order, selection in (("ascending", ascending), ("shuffled", shuffled), ("near", near)):
            for outside in (False, True):
                what = f"kernel {name}, heads {'outside' if outside else 'inside'} the tokens"
                rows.measure({"what": what, "list": order}, partial(whole, case, selection, name, outside))
    rows.finish()


if __name__ == "__main__":
    main()
