"""Runs the quantising kernels through Triton's interpreter and prints their errors as JSON.

A program, not a test: test_pipeline_fp8.py starts it with TRITON_INTERPRET=1. The interpreter truncates where a GPU
rounds to 8 bits, so here both sides keep the scaled numbers in fp32.
"""

import json

import torch

from pipeline.transformer import fused, fused_triton
from pipeline.weights import fp8


def unrounded(x):
    scales = x.float().abs().amax(-1, keepdim=True).clamp(min=1e-12) / fp8.LARGEST
    return fp8.Quantised(x.float() / scales, scales)


def error(ours, theirs):
    return max(float((a.double() - b.double()).norm() / b.double().norm()) for a, b in zip(ours, theirs, strict=True))


fused_triton.FP8 = torch.float32
fused.quantise = unrounded
torch.manual_seed(0)
x, branch = torch.randn(2, 2, 20, 48)
gate, gain, shift = torch.randn(2, 3, 3 * 48).chunk(3, dim=-1)
frames = (torch.arange(20) % 3).int()
a, b = torch.randn(2, 3, 5, 344)
a[0, 0] = 0  # a row of zeros has a scale too
results = {
    "norm": [ops.residual_norm_(x.clone(), None, None, gain, shift, frames, True) for ops in (fused_triton, fused)],
    "residual-norm": [
        ops.residual_norm_(x.clone(), branch, gate, gain, shift, frames, True) for ops in (fused_triton, fused)
    ],
    "swiglu": [ops.swiglu_(a.clone(), b, True) for ops in (fused_triton, fused)],
    "quantise": [fused_triton.quantise(a.transpose(0, 1)), unrounded(a.transpose(0, 1))],
}
print(json.dumps({name: error(*both) for name, both in results.items()}))
