"""Checks and times the fused kernels of pipeline/ on a GPU, in bfloat16 at 704p x 93 frames, beside plain PyTorch.

    python benchmarks/fused_check.py
    python benchmarks/fused_check.py --smoke    # the functions in PyTorch against themselves, on the CPU

A kernel is right when it is no further from float32 than one rounding to bfloat16. GB/s counts each tensor once.
"""

import sys
from functools import partial

import torch
from gpu import arguments, device_for, milliseconds

from bsa import BlockLayout, Grid
from pipeline import fused
from pipeline.fast_forward import _tables


def main() -> int:
    parser = arguments(__doc__, "fused_check")
    args = parser.parse_args()
    device = device_for(parser, args.smoke)
    grid, heads, dim = (Grid(4, 5, 6), 4, 16) if args.smoke else (Grid(24, 45, 80), 32, 128)
    dtype = torch.float32 if args.smoke else torch.bfloat16
    ops = fused.operations(device, dim)
    layout, tokens, size = BlockLayout(grid, Grid(4, 4, 4)), grid.volume, heads * dim
    rope, frames = _tables(grid, layout, dim, device)
    torch.manual_seed(0)
    modulation = torch.randn(1, grid.t, 3 * size, device=device)
    gate, gain, shift = modulation.chunk(3, dim=-1)
    x, branch = (torch.randn(1, tokens, size, device=device, dtype=dtype) for _ in range(2))
    weight = torch.rand(dim, device=device, dtype=dtype)
    hidden = [torch.randn(1, 16384 if not args.smoke else 64, 11008, device=device, dtype=dtype) for _ in range(2)]
    as_heads = x.view(1, tokens, heads, dim)
    cases = {
        "residual and norm": (ops.residual_norm_, fused.residual_norm_, (x, branch, gate, gain, shift, frames), 4),
        "norm": (ops.residual_norm_, fused.residual_norm_, (x, None, None, gain, shift, frames), 2),
        "head norm, rope, means": (ops.head_norm_, fused.head_norm_, (as_heads, weight, rope, layout), 2),
        "head norm": (ops.head_norm_, fused.head_norm_, (as_heads, weight, None, None), 2),
        "swiglu": (ops.swiglu_, fused.swiglu_, tuple(hidden), 3),
    }
    right = True
    for name, (kernel, reference, given, passes) in cases.items():
        changed = given[0]
        outs = []
        for function, to in ((kernel, dtype), (reference, torch.float32)):
            first = changed.to(to, copy=True)
            rest = [y.to(to) if torch.is_tensor(y) and y.dtype == dtype else y for y in given[1:]]
            outs.append([first, function(first, *rest)])
        errors = [
            float((ours.float() - exact.float()).norm() / exact.float().norm())
            for ours, exact in zip(*outs, strict=True)
            if ours is not None
        ]
        bytes_moved = passes * changed.numel() * changed.element_size()
        del outs
        times = []
        for function in (kernel, reference):
            times.append(milliseconds(partial(function, changed.clone(), *given[1:]), device)["ms"])
        fine = max(errors) < 2 * torch.finfo(dtype).eps
        right &= fine
        print(
            f"{name:24} error {max(errors):.2e}  fused {times[0]:8.3f} ms  {bytes_moved / times[0] / 1e6:6.0f} GB/s  "
            f"PyTorch {times[1]:8.3f} ms  {'ok' if fine else 'WRONG'}",
            flush=True,
        )
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
