"""Runs the fused kernels through Triton's interpreter and prints their errors as JSON.

A program, not a test: test_pipeline_fast_forward.py starts it with TRITON_INTERPRET=1, which Triton reads when it
is imported, and with the repository and its tests on the path.
"""

import json

import torch
from random_dit import random_dit, random_inputs

from bsa import BlockLayout, BSAConfig, Grid
from pipeline.transformer import fused, fused_triton
from pipeline.transformer.fast_forward import fast_forward
from pipeline.transformer.forward import rope_table
from pipeline.transformer.kv_cache import KeyValues


def error(pairs):
    pairs = [(a.double(), b.double()) for a, b in pairs if a is not None]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def both(name, make):
    """Largest error of the kernel's results and of the tensors that it changes."""
    results = []
    for module in (fused_triton, fused):
        torch.manual_seed(0)
        arguments = make()
        out = getattr(module, name)(*arguments)
        results.append([out, *(x for x in arguments[:1])])
    return error(zip(*results, strict=True))


def residual(branch, norm):
    tokens, frames, size = 20, 3, 48
    rows = (torch.arange(tokens) % frames).int()
    modulation = torch.randn(2, frames, 3 * size)
    gate, gain, shift = modulation.chunk(3, dim=-1)
    x, other = torch.randn(2, tokens, size), torch.randn(2, tokens, size)
    return lambda: (
        x.clone(), other if branch else None, gate if branch else None, gain if norm else None,
        shift if norm else None, rows,
    )  # fmt: skip


def head(grid, chunk, heads, cells=False):
    grid = Grid(*grid)
    layout = None if chunk is None else BlockLayout(grid, Grid(*chunk))
    rope = None if chunk is None else rope_table(grid, 16, torch.device("cpu"))
    x, weight = torch.randn(2, grid.volume, heads, 16), torch.rand(16)
    return lambda: (x.clone(), weight, rope, layout, cells)


def forward(grid, config, given=0, eight_bits=False):
    """Of the whole forward; with conditioning frames, also of one that finds their keys and values kept.

    eight_bits: of the attention with Triton, beside fp32 with PyTorch.
    """
    model = random_dit(num_attention_heads=2)  # each costs a second of the interpreter
    latents, *others = random_inputs(model, grid)
    results = []
    for backend in ("triton", "torch"):
        options = {"conditioning": given, "backend": backend, "eight_bits": eight_bits and backend == "triton"}
        out = [fast_forward(model, latents, *others, config, **options)]
        if given:
            cache = KeyValues()
            fast_forward(model, latents[:1, :, :given], *(x[:1] for x in others), config, cache=cache, **options)
            out.append(fast_forward(model, latents[:, :, given:], *others, config, cache=cache, **options))
        results.append(out)
    return error(zip(*results, strict=True))


torch.manual_seed(1)
a, b = torch.randn(2, 5000)
print(
    json.dumps(
        {
            "residual-norm": both("residual_norm_", residual(True, True)),
            "residual-only": both("residual_norm_", residual(True, False)),
            "norm-only": both("residual_norm_", residual(False, True)),
            "head-norm": both("head_norm_", head((4, 4, 8), (4, 4, 4), 8)),
            "head-norm-ragged": both("head_norm_", head((3, 5, 7), (2, 3, 4), 3)),
            "head-norm-cells": both("head_norm_", head((4, 4, 8), (4, 4, 4), 8, cells=True)),
            "head-norm-cells-ragged": both("head_norm_", head((3, 5, 7), (2, 3, 4), 3, cells=True)),
            "head-norm-cells-two-tiles": both("head_norm_", head((4, 5, 9), (4, 4, 8), 1, cells=True)),
            "head-norm-cross": both("head_norm_", head((1, 7, 11), None, 3)),
            "swiglu": both("swiglu_", lambda: (a.clone(), b)),
            "forward-dense": forward((2, 4, 4), None),
            "forward-ragged": forward((4, 5, 4), BSAConfig(0.5, None, (2, 4, 4), (2, 4, 4))),
            "forward-cells": forward((4, 5, 4), BSAConfig(0.5, None, (2, 4, 4), (2, 4, 4), "cells"), given=1),
            "forward-8-bits": forward(
                (4, 5, 4), BSAConfig(0.5, None, (2, 4, 4), (2, 4, 4)), eight_bits=True
            ),
            "forward-conditioned": forward((4, 5, 4), BSAConfig(0.5, None, (2, 4, 4), (2, 4, 4)), given=1),
        }
    )
)
