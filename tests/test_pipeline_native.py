"""The forward's operations that are compiled for this CPU, against their functions in PyTorch."""

import pytest
import torch
from random_dit import random_dit, random_inputs

from bsa import BlockLayout, BSAConfig, Grid
from bsa.native import choice
from pipeline.transformer import fused, fused_native
from pipeline.transformer.fast_forward import fast_forward
from pipeline.transformer.forward import rope_table
from pipeline.transformer.fused_cpu import CpuOperations

# fp32 sums of at most 72 terms in another order; results rounded to bfloat16 once, which may fall to either side.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 3e-3}
DTYPES = [pytest.param(dtype, id=str(dtype).removeprefix("torch.")) for dtype in TOLERANCE]


@pytest.fixture(autouse=True)
def switched_on(monkeypatch):
    monkeypatch.delenv(choice.SWITCH, raising=False)


def native(dtype):
    if reason := fused_native.obstacle(torch.device("cpu"), dtype):
        pytest.skip(f"no native operations: {reason}")
    return fused_native.NativeOperations(dtype)


def distance(out, expected):
    return float((out.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("branch", "gate", "norm", "frames"),
    [
        pytest.param(True, True, True, 3, id="everything"),
        pytest.param(True, False, True, 3, id="no-gate"),
        pytest.param(True, True, False, 3, id="no-norm"),
        pytest.param(False, False, True, 1, id="norm-alone"),
    ],
)
def test_residual_norm(dtype, branch, gate, norm, frames):
    ops = native(dtype)
    torch.manual_seed(0)
    tokens, width = 37, 72
    x, added = torch.randn(2, tokens, width) + 3, torch.randn(2, tokens, width).to(dtype)
    gates, gains, shifts = torch.randn(2, frames, 3 * width).chunk(3, dim=-1)
    rows = (torch.arange(tokens) % frames).int()
    given = (added if branch else None, gates if gate else None, *((gains, shifts) if norm else (None, None)), rows)
    ours, theirs = x.clone(), x.clone()
    out, expected = ops.residual_norm_(ours, *given), fused.residual_norm_(theirs, *given)
    assert distance(ours, theirs) < 1e-6
    assert out is expected is None or out.dtype == dtype and distance(out, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cells", [False, True], ids=["blocks", "cells"])
@pytest.mark.parametrize(
    ("size", "turned"),
    [
        pytest.param((3, 5, 7), True, id="ragged-rope"),
        pytest.param((3, 5, 7), False, id="ragged-text"),
        pytest.param((4, 8, 4), True, id="whole-rope"),
    ],
)
def test_head_norm_and_what_a_selection_compares(dtype, size, turned, cells):
    ops, grid, dim = native(dtype), Grid(*size), 24
    torch.manual_seed(0)
    layout = BlockLayout(grid, Grid(2, 4, 4))
    x, weight = torch.randn(2, grid.volume, 3, dim).to(dtype), torch.rand(dim).to(dtype)
    rope = rope_table(grid, dim, x.device) if turned else None
    ours, theirs = x.clone(), x.clone()
    means = ops.head_norm_(ours, weight, rope, layout, cells)
    expected = fused.head_norm_(theirs, weight, rope, layout, cells)
    assert distance(ours, theirs) < TOLERANCE[dtype] and distance(means, expected) < TOLERANCE[dtype]
    assert means.shape == expected.shape and means.dtype == torch.float32
    assert ops.head_norm_(ours, weight, rope, None) is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu(dtype):
    ops = native(dtype)
    torch.manual_seed(0)
    a, b = (torch.randn(2, 19, 45) * 40).to(dtype), torch.randn(2, 19, 45).to(dtype)
    expected = fused.swiglu_(a.clone(), b)
    out = ops.swiglu_(a, b)
    assert out is a and distance(out, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("config", [None, BSAConfig(0.6, None, (2, 3, 4), (2, 3, 4))], ids=["dense", "sparse"])
def test_the_forward_is_the_same(config):
    native(torch.float32)
    model = random_dit(num_attention_heads=2)
    inputs = random_inputs(model, (3, 5, 6))
    out, expected = (fast_forward(model, *inputs, config, backend=backend) for backend in ("native", "torch"))
    assert distance(out, expected) < 3e-6  # fp32 in another order through two blocks


def test_a_cpu_that_cannot_runs_pytorch(monkeypatch):
    monkeypatch.setenv(choice.SWITCH, "0")
    cpu = torch.device("cpu")
    assert type(fused.operations(cpu, 32)) is CpuOperations
    with pytest.raises(ValueError, match="native operations cannot run because BSA_NATIVE=0 turns it off"):
        fused.operations(cpu, 32, "native")
    with pytest.raises(ValueError, match="not on the CPU"):
        fused.operations(torch.device("cuda"), 32, "native")
