"""The forward for large videos, against the plain one (which test_pipeline_parity.py holds against the original)."""

import pytest
import torch
from programs import run_interpreted
from random_dit import random_dit, random_inputs

from bsa import BlockLayout, BSAConfig, Grid, block_sparse_attention
from pipeline.transformer import fused
from pipeline.transformer.fast_forward import fast_forward
from pipeline.transformer.forward import attend_dense, longcat_forward

ROWS = [
    pytest.param((4, 8, 8), None, id="dense"),
    pytest.param((4, 8, 8), BSAConfig(0.5), id="whole-blocks"),
    pytest.param((5, 7, 6), BSAConfig(0.5), id="ragged"),
    pytest.param((3, 5, 6), BSAConfig(0.6, None, (2, 3, 4), (2, 3, 4)), id="ragged-odd-chunks"),
    pytest.param((3, 5, 6), BSAConfig(None, 0.7, (2, 2, 2), (2, 2, 2)), id="threshold"),
    pytest.param((5, 7, 6), BSAConfig(0.6, None, (4, 4, 4), (2, 2, 4)), id="fine-keys"),
]


def plain(model, inputs, config, **kwargs):
    def sparse(q, k, v, grid, conditioning):
        return block_sparse_attention(q, k, v, grid, config, conditioning=conditioning)

    with torch.no_grad():
        return longcat_forward(model, *inputs, attend_dense if config is None else sparse, **kwargs)


def relative_error(value, expected):
    return float((value.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("ffn_tokens", [pytest.param(16384, id="one-part"), pytest.param(37, id="parts")])
@pytest.mark.parametrize(("grid", "config"), ROWS)
def test_is_the_plain_forward(grid, config, ffn_tokens):
    model = random_dit()
    inputs = random_inputs(model, grid)
    out = fast_forward(model, *inputs, config, ffn_tokens=ffn_tokens)
    expected = plain(model, inputs, config)
    assert out.shape == expected.shape and out.dtype == torch.float32
    # fp32 in another order through two blocks; a wrong order of tokens or frames would be an error near 1.
    assert relative_error(out, expected) < 2e-6


def test_zeroed_text_padding():
    model = random_dit()
    inputs = random_inputs(model, (4, 4, 4))
    out = fast_forward(model, *inputs, BSAConfig(0.5, None, (2, 2, 2), (2, 2, 2)), zero_text_padding=True)
    expected = plain(model, inputs, BSAConfig(0.5, None, (2, 2, 2), (2, 2, 2)), zero_text_padding=True)
    assert relative_error(out, expected) < 2e-6


def test_bfloat16_is_no_worse_than_the_plain_forward_in_bfloat16():
    config = None  # selection would turn rounding into other blocks
    exact_model = random_dit(depth=4)
    latents, time, text, mask = random_inputs(exact_model, (4, 6, 6))
    model = random_dit(depth=4, dtype=torch.bfloat16)
    rounded_weights = random_dit(depth=4, dtype=torch.bfloat16).float()
    exact = plain(rounded_weights, (latents.bfloat16().float(), time, text.bfloat16().float(), mask), config)
    inputs = latents.bfloat16(), time, text.bfloat16(), mask
    ours = relative_error(fast_forward(model, *inputs, config), exact)
    theirs = relative_error(plain(model, inputs, config), exact)
    # It rounds in fewer places. A tenth of slack: both are one sample of rounding noise.
    assert 1e-4 < ours < 1.1 * theirs


def test_observer_sees_every_layer():
    model, seen = random_dit(), []
    inputs = random_inputs(model, (4, 8, 8))
    fast_forward(model, *inputs, BSAConfig(0.5), observe=lambda *call: seen.append(call))
    assert [selection.indices.shape for _, _, selection in seen] == [(2, 4, 4, 2)] * 2
    raster = []
    layout = BlockLayout(Grid(4, 8, 8), Grid(4, 4, 4))

    def attend(q, k, v, grid, conditioning):
        raster.append((q, k))
        return block_sparse_attention(q, k, v, grid, BSAConfig(0.5))

    longcat_forward(model, *inputs, attend)
    for (q, k, _), expected in zip(seen, raster, strict=True):
        order = layout.order(q.device)
        # fp32 through up to two blocks.
        assert relative_error(q, expected[0][:, :, order]) < 2e-6 and relative_error(k, expected[1][:, :, order]) < 2e-6


def test_misuse_is_refused():
    model = random_dit()
    inputs = random_inputs(model, (4, 8, 8))
    with pytest.raises(ValueError, match=r"4x4x4 and 2x3x4 share no block order"):
        fast_forward(model, *inputs, BSAConfig(0.5, None, (4, 4, 4), (2, 3, 4)))
    with pytest.raises(ValueError, match=r"\(4, 15, 16\) is not a multiple"):
        fast_forward(model, inputs[0][:, :, :, :15], *inputs[1:], None)
    with pytest.raises(ValueError, match="unknown backend 'cuda'"):
        fused.operations(torch.device("cpu"), 64, "cuda")
    with pytest.raises(ValueError, match="powers of two, not 48"):
        fused.operations(torch.device("cpu"), 48, "triton")


KERNELS = ("residual-norm", "residual-only", "norm-only", "head-norm", "head-norm-ragged", "head-norm-cross", "swiglu")
KERNELS += ("head-norm-cells", "head-norm-cells-ragged", "head-norm-cells-two-tiles")
FORWARDS = ("forward-dense", "forward-ragged", "forward-conditioned", "forward-cells")


@pytest.fixture(scope="module")
def interpreted():
    pytest.importorskip("triton")
    return run_interpreted("fused_interpreter.py")


@pytest.mark.parametrize("name", (*KERNELS, *FORWARDS))
def test_interpreted_kernels_equal_the_functions_in_pytorch(interpreted, name):
    # fp32, sums of at most 64 terms; the forwards go through two blocks of them.
    assert interpreted[name] < 2e-6


def test_the_interpreted_forward_with_attention_in_8_bits_is_near_the_exact_one(interpreted):
    # 1 to 2 % in each attention (docs/hopper.md), to which the residual adds what is exact; none would leave 1e-7.
    assert 1e-4 < interpreted["forward-8-bits"] < 0.03


@pytest.mark.parametrize("gpu", ["A100", "RTX-4090", "H200"])
def test_kernels_build_everywhere(gpu):
    pytest.importorskip("triton")
    from triton_aot import GPUS, build, ptxas_missing

    if reason := ptxas_missing():
        pytest.skip(reason)
    from pipeline.transformer import fused_triton as kernels

    half = dict.fromkeys(("x_ptr", "branch_ptr", "out_ptr", "weight_ptr", "a_ptr", "b_ptr"), "*bf16")
    single = dict.fromkeys(("gate_ptr", "gain_ptr", "shift_ptr", "cos_ptr", "sin_ptr", "means_ptr"), "*fp32")
    types = {**half, **single, "eps": "fp32"}
    flags = dict.fromkeys(("BRANCH", "GATE", "NORM", "FRAMES"), True)
    capability = GPUS[gpu][0]
    residual = {"SIZE": 4096, "BLOCK": 4096, "ROWS": 8, **flags}
    heads = {"HEADS": 32, "DIM": 128, "CHUNK": 64, "TILE": 16, "GROUP": 8, "ROPE": True, "LAYOUT": True}
    heads["CELLS"] = 0
    build(kernels._residual_norm_kernel, capability, types, residual, num_warps=8)
    build(kernels._head_norm_kernel, capability, types, heads, num_warps=8)
    of_cells = types | {"means_ptr": "*bf16", "cell_sizes_ptr": "*fp32"}
    build(kernels._head_norm_kernel, capability, of_cells, heads | {"TILE": 64, "CELLS": 8}, num_warps=8)
    build(kernels._swiglu_kernel, capability, types, {"BLOCK": 4096}, num_warps=8)


def test_grid_of_one_block():
    model = random_dit()
    inputs = random_inputs(model, (2, 2, 3))
    config = BSAConfig(0.5)
    assert relative_error(fast_forward(model, *inputs, config), plain(model, inputs, config)) < 2e-6
