"""Checks and times the fused kernels and the 8-bit products on a GPU, in bf16 at 720p x 93 frames, beside PyTorch.

    python benchmarks/fused_check.py            # writes benchmarks/results/fused.json
    python benchmarks/fused_check.py --smoke    # the functions in PyTorch against themselves, on the CPU

A kernel is right if it is no further from fp32 than one rounding to bf16. In 8 bits, fewer than 1 in 1000 numbers may
differ from PyTorch's (the last bits of fp32 decide these). A product is right if the error of its sums is less than
half the error from rounding its factors. "GB/s" counts each tensor once. The exit status is 1 if something is wrong.
"""

import sys
from functools import partial

import torch
from dit import DiTConfig, LongCatDiT, inputs
from gpu import Rows, arguments, device_for, milliseconds

from bsa import BlockLayout, BSAConfig, Grid
from pipeline.transformer import fused
from pipeline.transformer.fast_forward import _tables, fast_forward
from pipeline.weights import fp8
from pipeline.weights.fp8 import Fp8Linear, Quantised, quantise
from pipeline.weights.offload import Offload


def compared(ours, exact, dtype) -> dict:
    if isinstance(ours, Quantised):
        unequal = (ours.values.view(torch.uint8) != exact.values.view(torch.uint8)).float().mean().item()
        scales = float(((ours.scales - exact.scales) / exact.scales).abs().max())
        return {"error": scales, "unequal": unequal, "right": unequal < 1e-3 and scales < 1e-4}
    error = float((ours.float() - exact.float()).norm() / exact.float().norm())
    return {"error": error, "right": error < 2 * torch.finfo(dtype).eps}


def kernel(ours, reference, given, passes, to_8_bits, device) -> dict:
    """Check and time one kernel. given: its inputs; the first is changed. passes: how often its bytes are moved."""
    changed, dtype = given[0], given[0].dtype
    outs = []
    for function, to in ((ours, dtype), (reference, dtype if to_8_bits else torch.float32)):
        first = changed.to(to, copy=True)
        rest = [y.to(to) if torch.is_tensor(y) and y.dtype == dtype else y for y in given[1:]]
        outs.append([first, function(first, *rest)])
    found = [compared(*pair, dtype) for pair in zip(*outs, strict=True) if pair[0] is not None]
    del outs
    worst = max(found, key=lambda row: (not row["right"], row["error"]))
    fused_ms = milliseconds(partial(ours, changed.clone(), *given[1:]), device)["ms"]
    plain_ms = milliseconds(partial(reference, changed.clone(), *given[1:]), device, repeats=3)["ms"]
    moved = passes * changed.numel() * changed.element_size()
    return worst | {"ms": fused_ms, "gb_per_s": moved / fused_ms / 1e6, "pytorch_ms": plain_ms}


def product(rows: int, inside: int, outside: int, bias: bool, dtype, device) -> dict:
    """Time one linear layer in 8 bits and in bf16, with the error against fp32 products of the same 8-bit numbers."""
    weight = torch.randn(outside, inside, device=device, dtype=dtype) / inside**0.5
    offset = torch.randn(outside, device=device, dtype=dtype) if bias else None
    layer, x = Fp8Linear(weight, offset), torch.randn(rows, inside, device=device, dtype=dtype)
    given = quantise(x)
    some = Quantised(given.values[:256], given.scales[:256])
    exact = some.to(torch.float32) @ (layer.weight.float() * layer.scales).T + (0 if offset is None else offset.float())
    flops = 2 * rows * inside * outside
    row = {}
    for name, fast in (("", True), ("accurate_", False)):
        fp8.FAST_SUMS = fast
        row[f"{name}error"] = float((layer(some).float() - exact).norm() / exact.norm())
        row[f"{name}ms"] = milliseconds(lambda: layer(given), device)["ms"]
    fp8.FAST_SUMS = True
    bf16 = milliseconds(lambda: torch.nn.functional.linear(x, weight, offset), device)["ms"]
    row |= {"tflops": flops / row["ms"] / 1e9, "bf16_ms": bf16, "bf16_tflops": flops / bf16 / 1e9}
    return row | {"right": row["error"] < 0.018}


def small_forward(fp8_weights: bool, device) -> dict:
    """Compare an offloaded tiny model of twelve blocks with the same model on the device, in two passes."""
    small = DiTConfig(hidden_size=256, num_attention_heads=4, depth=12, caption_channels=32)
    torch.manual_seed(0)
    model = LongCatDiT(small).requires_grad_(False)
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.normal_(0, weight[0].numel() ** -0.5)
    model = model.to(device, torch.bfloat16)
    model = fp8.to_fp8(model) if fp8_weights else model
    given, config = inputs(model, Grid(4, 10, 12), device), BSAConfig(0.5)
    exact = fast_forward(model, *given, config)
    offload = Offload(model, device)
    for _ in range(2):
        out = fast_forward(model, *given, config, offload=offload)
    error = float((out - exact).norm() / exact.norm())
    return {"error": error, "right": error < 1e-3}


def main() -> int:
    parser = arguments(__doc__, "fused")
    args = parser.parse_args()
    device = device_for(parser, args.smoke)
    rows = Rows(args, device)
    grid, heads, dim, hidden = (Grid(4, 5, 6), 4, 16, 256) if args.smoke else (Grid(24, 45, 80), 32, 128, 11008)
    dtype = torch.float32 if args.smoke else torch.bfloat16
    ops = fused.operations(device, dim)
    layout, tokens, size = BlockLayout(grid, Grid(4, 4, 4)), grid.volume, heads * dim
    rope, frames = _tables(grid, grid, layout, dim, device)
    torch.manual_seed(0)
    gate, gain, shift = torch.randn(1, grid.t, 3 * size, device=device).chunk(3, dim=-1)
    x, branch = (torch.randn(1, tokens, size, device=device, dtype=dtype) for _ in range(2))
    weight = torch.rand(dim, device=device, dtype=dtype)
    ffn = [torch.randn(1, min(tokens, 16384), hidden, device=device, dtype=dtype) for _ in range(2)]
    as_heads = x.view(1, tokens, heads, dim)

    def low(function):
        return lambda *given: function(*given, True)

    kernels = {
        "residual and norm": ("residual_norm_", (x, branch, gate, gain, shift, frames), 4, False),
        "norm": ("residual_norm_", (x, None, None, gain, shift, frames), 2, False),
        "head norm, rope, means": ("head_norm_", (as_heads, weight, rope, layout), 2, False),
        "head norm": ("head_norm_", (as_heads, weight, None, None), 2, False),
        "swiglu": ("swiglu_", tuple(ffn), 3, False),
        "residual and norm to 8 bits": ("residual_norm_", (x, branch, gate, gain, shift, frames), 3.5, True),
        "swiglu to 8 bits": ("swiglu_", tuple(ffn), 2.5, True),
        "to 8 bits": ("quantise", (x,), 1.5, False),
    }
    for what, (name, given, passes, flag) in kernels.items():
        pair = (getattr(module, name) for module in (ops, fused))
        ours, reference = (low(function) if flag else function for function in pair)
        rows.measure({"what": what}, partial(kernel, ours, reference, given, passes, "8 bits" in what, device))
    del x, branch, ffn, as_heads, kernels, given
    for inside, outside, bias in ((size, size, True), (size, hidden, False), (hidden, size, False)):
        shape = tokens if outside == size and bias else min(tokens, 16384), inside, outside, bias
        rows.measure(
            {"what": f"8-bit product, {' x '.join(map(str, shape[:3]))}"}, partial(product, *shape, dtype, device)
        )
    for name, weights in (("bf16", False), ("fp8", True)):
        rows.measure({"what": f"offload, {name}, a small forward"}, partial(small_forward, weights, device))
    rows.finish()
    return 0 if all(row.get("right") for row in rows.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
