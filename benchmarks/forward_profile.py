"""Profiles one sparse forward pass of the real size on a GPU: time by kernel, summed by kind.

    python benchmarks/forward_profile.py      # 704p x 93 frames; writes benchmarks/results/forward_profile.json
"""

import json

import torch
from dit import Models, grid_of, inputs
from gpu import arguments, device_for, machine
from torch.profiler import ProfilerActivity, profile

from bsa import BSAConfig
from pipeline.transformer.fast_forward import fast_forward

# a kernel belongs to the first of these that its name contains
KINDS = {
    "_attend_": "block sparse attention",
    "sdpa": "cross-attention",
    "_top_k": "top-k of the block scores",
    "f32f32": "fp32 products: block scores, modulation, last layer",
    "nvjet": "matrix products",
    "gemm": "matrix products",
    "_residual_norm": "residual, norm, modulation",
    "_head_norm": "norm of the heads, rotary, block means",
    "_swiglu": "SwiGLU",
}


def by_kind(kernels: list[tuple[str, float]]) -> list[dict]:
    """Sum kernels, given as (name, milliseconds), by kind. The longest kind comes first, "everything else" last."""
    sums: dict[str, float] = {}
    for name, ms in kernels:
        kind = next((kind for part, kind in KINDS.items() if part in name), "everything else")
        sums[kind] = sums.get(kind, 0.0) + ms
    order = sorted(sums, key=lambda kind: (kind == "everything else", -sums[kind]))
    return [{"what": kind, "ms": sums[kind]} for kind in order]


def main() -> None:
    parser = arguments(__doc__, "forward_profile")
    args = parser.parse_args()
    device = device_for(parser, False)
    model, _ = Models(device, False)("bf16")
    given, config = inputs(model, grid_of("704p", 93), device), BSAConfig(0.9375)
    fast_forward(model, *given, config)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        fast_forward(model, *given, config)
        torch.cuda.synchronize()
    kernels = [(event.key, event.self_device_time_total / 1e3) for event in found.key_averages()]
    rows = by_kind([kernel for kernel in kernels if kernel[1] > 0])
    args.output.write_text(json.dumps({**machine(device), "size": "704p", "rows": rows}, indent=1) + "\n")
    for row in rows:
        print(f"{row['ms']:10.1f} ms  {row['what']}")


if __name__ == "__main__":
    main()
