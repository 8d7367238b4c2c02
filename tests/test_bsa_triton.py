"""The Triton kernels: interpreted on the CPU, and run on a GPU where there is one."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from bsa import BlockLayout, BSAConfig, Grid, block_sparse_attention
from bsa.reference import masked_attention
from bsa.selection import select_pooled

pytest.importorskip("triton")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

FULL = {"sparsity": 0.5, "heads": 2}
CASES = {
    "one-tile-blocks": {**FULL, "grid": (4, 8, 8), "chunk_q": (4, 4, 4), "chunk_k": (4, 4, 4), "dim": 64},
    "two-tile-blocks": {**FULL, "grid": (4, 8, 8), "chunk_q": (4, 4, 8), "chunk_k": (4, 4, 8), "dim": 32},
    "unequal-chunks": {**FULL, "grid": (4, 8, 8), "chunk_q": (4, 4, 8), "chunk_k": (2, 4, 4), "dim": 16},
    "ragged-rows": {**FULL, "grid": (4, 5, 8), "chunk_q": (4, 4, 4), "chunk_k": (4, 4, 4), "dim": 16},
    "ragged-everywhere": {"sparsity": 0.8, "grid": (5, 5, 9), "chunk_q": (2, 3, 4), "chunk_k": (3, 2, 5), "dim": 48},
    "odd-chunk-two-tiles": {"sparsity": 0, "grid": (3, 7, 10), "chunk_q": (3, 5, 7), "chunk_k": (3, 5, 7), "dim": 40},
    "dim-256": {"sparsity": 0, "heads": 1, "grid": (3, 3, 5), "chunk_q": (2, 2, 4), "chunk_k": (2, 2, 4), "dim": 256},
    "dim-17": {**FULL, "grid": (2, 4, 8), "chunk_q": (2, 2, 4), "chunk_k": (2, 2, 4), "dim": 17},
    "batch-of-two": {**FULL, "batch": 2, "grid": (3, 4, 6), "chunk_q": (2, 2, 4), "chunk_k": (2, 2, 4), "dim": 16},
    "threshold": {"cdf": 0.6, "grid": (4, 4, 8), "chunk_q": (2, 2, 4), "chunk_k": (2, 2, 4), "dim": 16},
    "threshold-ragged": {"cdf": 0.6, "grid": (3, 5, 6), "chunk_q": (2, 2, 4), "chunk_k": (2, 2, 4), "dim": 16},
    "fp16": {**FULL, "dtype": "fp16", "grid": (3, 5, 9), "chunk_q": (4, 4, 4), "chunk_k": (4, 4, 4), "dim": 64},
}
UPSTREAM = {
    f"{backend}-{name}": {**case, "backend": backend}
    for backend in ("torch", "triton")
    for name, case in {
        "4x4x4": {"sparsity": 0.5, "grid": (4, 8, 8), "chunk_q": (4, 4, 4), "chunk_k": (4, 4, 4), "dim": 64},
        "unequal": {"sparsity": 0.75, "grid": (4, 8, 16), "chunk_q": (4, 4, 4), "chunk_k": (4, 4, 8), "dim": 32},
    }.items()
}
D64, D32, P64 = "descriptors-64x64-w4-s3", "descriptors-64x32-w4-s3", "pointers-64x64-w4-s3"
Q64 = "descriptors-64x64-w4-s5-qz"
S64, S128 = "small-blocks-64x64-w4-s3", "small-blocks-128x64-w4-s3"
KEYS_16 = {"chunk_k": (2, 2, 4), "dim": 16}
ORDER = {
    "descriptors": {**FULL, "grid": (4, 8, 8), "chunk": (4, 4, 4), "dim": 32, "variant": D64},
    "descriptors-ragged": {"sparsity": 0.4, "grid": (4, 5, 10), "chunk": (4, 4, 4), "dim": 16, "variant": D64},
    "descriptors-two-tiles": {"sparsity": 0.4, "grid": (5, 4, 10), "chunk": (4, 4, 4), "dim": 16, "variant": D32},
    "descriptors-batch": {**FULL, "batch": 2, "grid": (4, 5, 4), "chunk": (2, 2, 4), "dim": 16, "variant": D64},
    "descriptors-q-in-registers": {**FULL, "grid": (4, 8, 8), "chunk": (4, 4, 4), "dim": 32, "variant": Q64},
    "descriptors-q-ragged": {"sparsity": 0.4, "grid": (5, 6, 9), "chunk": (4, 4, 4), "dim": 16, "variant": Q64},
    "pointers-ragged": {"sparsity": 0.4, "grid": (3, 5, 7), "chunk": (2, 3, 4), "dim": 17, "variant": P64},
    "pointers-fused-top-k": {**FULL, "fused": True, "grid": (4, 5, 6), "chunk": (2, 2, 4), "dim": 16, "variant": P64},
    "pointers-threshold": {"cdf": 0.6, "grid": (3, 5, 6), "chunk": (2, 2, 4), "dim": 16, "variant": P64},
}
ORDER |= {
    "small-blocks": {**FULL, **KEYS_16, "grid": (4, 8, 8), "chunk": (4, 4, 8), "variant": S128},
    "small-blocks-last-tile": {"sparsity": 0.8, **KEYS_16, "grid": (4, 4, 20), "chunk": (4, 4, 4), "variant": S64},
    "small-blocks-ragged": {"sparsity": 0.4, **KEYS_16, "grid": (5, 7, 9), "chunk": (4, 4, 4), "variant": S64},
    "small-blocks-fused": {**FULL, **KEYS_16, "fused": True, "grid": (4, 5, 6), "chunk": (4, 4, 4), "variant": S64},
    "small-blocks-odd": {"cdf": 0.6, "grid": (4, 5, 9), "chunk": (4, 2, 6), "chunk_k": (2, 2, 3), "dim": 17}
    | {"variant": S64},
}
E64, T64 = "pointers-64x64-w4-s3", "descriptors-64x64-w4-s3"
EIGHT_BITS = {
    "whole": {**FULL, "grid": (4, 8, 8), "chunk": (4, 4, 4), "dim": 64, "variant": E64},
    "ragged": {"sparsity": 0.4, "grid": (5, 5, 10), "chunk": (4, 4, 4), "dim": 32, "variant": E64},
    "ragged-descriptors": {"sparsity": 0.4, "grid": (5, 5, 10), "chunk": (4, 4, 4), "dim": 32, "variant": T64},
    "odd-two-tiles": {"sparsity": 0, "grid": (3, 7, 10), "chunk": (3, 5, 7), "dim": 40, "variant": E64},
    "smaller-keys": {**FULL, "grid": (4, 8, 8), "chunk": (4, 4, 8), "chunk_k": (2, 2, 4), "dim": 17, "variant": T64},
    "batch-of-two": {**FULL, "batch": 2, "grid": (3, 4, 6), "chunk": (2, 2, 4), "dim": 16, "variant": E64},
}
# Weights are rounded to nearest in fp16. The interpreter cuts e4m3 numbers off, by up to an eighth, on average a 22nd;
# a GPU rounds them.
EIGHT_BIT_ERRORS = {"float16": 1e-3, "float8_e4m3fn": 0.07}
TOP_K = {
    "whole": {"sparsity": 0.75, "grid": (4, 4, 6), "chunk": (2, 2, 2)},
    "ragged": {"sparsity": 0.6, "grid": (3, 5, 6), "chunk": (2, 2, 4)},
    "everything": {"sparsity": 0.0, "grid": (3, 5, 6), "chunk": (2, 2, 4)},
    "ties": {"sparsity": 0.5, "grid": (3, 5, 6), "chunk": (2, 2, 4), "ties": True},
    "cells": {"sparsity": 0.6, "grid": (3, 5, 6), "chunk": (2, 2, 4), "scores": "cells"},
}
CELLS = {
    "whole": {"grid": (4, 8, 8), "chunk_q": (4, 4, 4), "chunk_k": (4, 4, 4), "dim": 16},
    "ragged": {"grid": (5, 5, 9), "chunk_q": (4, 4, 4), "chunk_k": (2, 2, 4), "dim": 17},
    "odd-chunks": {"grid": (3, 7, 10), "chunk_q": (3, 5, 7), "chunk_k": (1, 3, 3), "dim": 40},
}
LAYOUTS = {
    "whole": {"grid": (4, 8, 8), "chunk": (4, 4, 4), "dim": 16},
    "ragged-two-steps": {"grid": (5, 5, 9), "chunk": (4, 4, 8), "dim": 17},
    "odd-fp16": {"grid": (3, 7, 10), "chunk": (3, 5, 7), "dim": 40, "dtype": "fp16"},
}
OPERATIONS = {
    "one-chunk": {"grid": (4, 5, 9), "chunk_q": (4, 4, 4), "chunk_k": (4, 4, 4), "eight_bits": True},
    "fine-keys": {"grid": (4, 5, 9), "chunk_q": (4, 4, 4), "chunk_k": (2, 2, 4)},
    "conditioned": {"grid": (8, 8, 8), "chunk_q": (4, 4, 4), "chunk_k": (4, 4, 4), "scores": "mean", "conditioning": 4}
    | {"eight_bits": True},
    "conditioned-one-frame-batch": {
        "grid": (5, 5, 8),
        "chunk_q": (4, 4, 4),
        "chunk_k": (4, 4, 4),
        "scores": "mean",
        "conditioning": 1,
        "batch": 2,
    },
    "conditioned-descriptors": {
        "grid": (5, 4, 10),
        "chunk_q": (4, 4, 4),
        "chunk_k": (4, 4, 4),
        "scores": "mean",
        "conditioning": 1,
        "variant": D64,
    },
    "conditioned-cells": {"grid": (6, 5, 6), "chunk_q": (4, 4, 4), "chunk_k": (2, 2, 4), "conditioning": 3},
}


@pytest.fixture(scope="module")
def interpreted_errors():
    """Error of every case, from one interpreter process; a missing case shows that process's own output."""
    cases = [{"id": name, "kind": "kernel", **case} for name, case in CASES.items()]
    cases += [{"id": name, "kind": "upstream", **case} for name, case in UPSTREAM.items()]
    cases += [{"id": f"order-{name}", "kind": "order", **case} for name, case in ORDER.items()]
    cases += [
        {"id": f"{values}-{name}", "kind": "eight-bits", "values": values, **case}
        for name, case in EIGHT_BITS.items()
        for values in EIGHT_BIT_ERRORS
    ]
    cases += [{"id": f"top-k-{name}", "kind": "top-k", **case} for name, case in TOP_K.items()]
    cases += [{"id": f"layout-{name}", "kind": "layout", **case} for name, case in LAYOUTS.items()]
    cases += [{"id": f"cells-{name}", "kind": "cells", **case} for name, case in CELLS.items()]
    cases += [{"id": f"operation-{name}", "kind": "operation", **case} for name, case in OPERATIONS.items()]
    process = subprocess.run(
        [sys.executable, Path(__file__).with_name("bsa_interpreter.py")],
        input="\n".join(map(json.dumps, cases)),
        capture_output=True,
        text=True,
    )
    lines = [json.loads(line) for line in process.stdout.splitlines() if line.startswith("{")]
    errors = {line["id"]: line["error"] for line in lines}

    def error_of(name):
        if name not in errors:
            pytest.fail(f"the interpreter printed no result for {name}:\n{process.stderr[-3000:]}")
        return errors[name]

    return error_of


@pytest.mark.parametrize("name", CASES)
def test_interpreted_kernel_matches_fp64(interpreted_errors, name):
    # fp32: 24 bits, sums of under a thousand terms. fp16 rounds the weights once and the result once.
    bound = 2 * torch.finfo(torch.float16).eps if CASES[name].get("dtype") == "fp16" else 2e-6
    assert interpreted_errors(name) < bound


@pytest.mark.parametrize("name", ORDER)
def test_interpreted_kernels_on_block_order_match_fp64(interpreted_errors, name):
    assert interpreted_errors(f"order-{name}") < 2e-6


@pytest.mark.parametrize("values", EIGHT_BIT_ERRORS)
@pytest.mark.parametrize("name", EIGHT_BITS)
def test_the_interpreted_kernel_in_8_bits_matches_fp64_of_the_same_8_bits(interpreted_errors, name, values):
    assert interpreted_errors(f"{values}-{name}") < EIGHT_BIT_ERRORS[values]


@pytest.mark.parametrize("name", LAYOUTS)
def test_block_order_and_means_in_one_pass(interpreted_errors, name):
    assert interpreted_errors(f"layout-{name}") < 1e-6  # means: fp32 sums in another order


@pytest.mark.parametrize("name", CELLS)
def test_cells_and_their_masses_match_fp64(interpreted_errors, name):
    assert interpreted_errors(f"cells-{name}") < 2e-6


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_match_the_reference(interpreted_errors, name):
    assert interpreted_errors(f"operation-{name}") < 2e-6


@pytest.mark.parametrize("name", TOP_K)
def test_fused_top_k_keeps_the_same_blocks(interpreted_errors, name):
    # No two scores of the random rows are within rounding of each other; with ties the kept mass must agree.
    assert interpreted_errors(f"top-k-{name}") <= (1e-5 if "ties" in name else 0)


@pytest.mark.skipif(not find_spec("fastvideo"), reason="FastVideo is not installed")
@pytest.mark.parametrize("name", UPSTREAM)
def test_agrees_with_fastvideo_flash_attn_bsa_3d(interpreted_errors, name):
    # Both sides are fp32 and select the same blocks; one differing block would show as an error near 1.
    assert interpreted_errors(name) < 2e-6


GPU_ROWS = [
    pytest.param((8, 16, 16), (4, 4, 4), (4, 4, 4), 128, {"sparsity": 0.75}, id="divisible"),
    pytest.param((8, 13, 18), (4, 4, 4), (4, 4, 8), 128, {"sparsity": 0.75}, id="ragged-unequal"),
    pytest.param((7, 11, 15), (3, 5, 7), (3, 5, 7), 64, {"sparsity": 0.5}, id="odd-chunks"),
    pytest.param((6, 12, 12), (4, 4, 8), (2, 2, 2), 40, {"cdf_threshold": 0.8}, id="threshold-dim-40"),
    pytest.param((4, 9, 16), (4, 4, 4), (4, 4, 4), 256, {"sparsity": 0.5, "cdf_threshold": 0.5}, id="both-dim-256"),
]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("grid", "chunk_q", "chunk_k", "dim", "rule"), GPU_ROWS)
def test_kernels_on_a_gpu_are_as_close_to_fp64_as_rounded_math(grid, chunk_q, chunk_k, dim, rule, dtype):
    from bsa.attention import tuning_of
    from bsa.kernels.attend import attend_tokens
    from bsa.kernels.order import from_order, to_order

    torch.manual_seed(0)
    grid, config = Grid(*grid), BSAConfig(**{"sparsity": None, **rule}, chunk_q=chunk_q, chunk_k=chunk_k)
    q, k, v = (torch.randn(2, 3, grid.volume, dim, device="cuda").to(dtype) for _ in range(3))
    layouts = BlockLayout(grid, config.chunk_q), BlockLayout(grid, config.chunk_k)
    (q_order, q_means), (k_order, k_means) = map(to_order, (q, k), layouts)
    v_order, _ = to_order(v, layouts[1], means=False)
    tuning = tuning_of(q, *layouts)
    selection = select_pooled(q_means, k_means, *layouts, config, dim**-0.5, fused=tuning.fused_top_k)
    poisoned = torch.full_like(q_order, float("nan"))
    attend_tokens(q_order, k_order, v_order, selection, *layouts, dim**-0.5, poisoned, variant=tuning.variant)
    exact = masked_attention(q.double(), k.double(), v.double(), selection, *layouts, dim**-0.5)
    error = (from_order(poisoned, layouts[0]).double() - exact).norm() / exact.norm()
    # Half precision: weights rounded once, result rounded once. fp32: sums of under a thousand terms.
    assert error < (2e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    ("grid", "chunk_q", "chunk_k", "dim"),
    [
        pytest.param((8, 16, 16), (4, 4, 4), (4, 4, 4), 128, id="divisible"),
        pytest.param((8, 13, 18), (4, 4, 8), (2, 2, 4), 128, id="ragged-fine-keys"),
        pytest.param((7, 11, 15), (3, 5, 7), (1, 3, 3), 40, id="odd"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_cells_on_a_gpu(grid, chunk_q, chunk_k, dim, dtype):
    from bsa.cells import cell_scores, pool_cells
    from bsa.kernels.cell_scores import cell_masses, pool_cells_in_order

    torch.manual_seed(0)
    layouts = [BlockLayout(Grid(*grid), Grid(*chunk)) for chunk in (chunk_q, chunk_k)]
    raster = [torch.randn(2, 3, Grid(*grid).volume, dim, device="cuda").to(dtype) for _ in layouts]
    cells = [pool_cells_in_order(x[:, :, layout.order(x.device)], layout) for x, layout in zip(raster, layouts)]
    exact = [pool_cells(layout.to_blocks(x.double()), layout) for x, layout in zip(raster, layouts)]
    bound = 2e-6 if dtype == torch.float32 else torch.finfo(dtype).eps  # cells are rounded once
    for ours, theirs in zip(cells, exact, strict=True):
        assert (ours.double() - theirs).norm() / theirs.norm() < bound
    masses = cell_masses(*cells, *layouts, dim**-0.5).double()
    expected = cell_scores(*exact, *layouts, dim**-0.5).exp()
    assert (masses - expected).norm() / expected.norm() < 2 * bound  # and masses once more
    torch.testing.assert_close(masses.sum(-1), torch.ones_like(masses[..., 0]), rtol=0, atol=bound)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_cells_select_alike_through_the_public_operation(backend):
    torch.manual_seed(0)
    grid, config = Grid(8, 13, 18), BSAConfig(0.75, selection="cells")
    q, k, v = (torch.randn(1, 2, grid.volume, 64, device="cuda") for _ in range(3))
    out, selection = block_sparse_attention(q, k, v, grid, config, backend=backend, return_selection=True)
    expected, chosen = block_sparse_attention(
        q.cpu(), k.cpu(), v.cpu(), grid, config, backend="reference", return_selection=True
    )
    blocks = config.blocks(grid).k_blocks.volume
    assert torch.equal(selection.mask(blocks).cpu(), chosen.mask(blocks))
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@needs_gpu
def test_auto_uses_the_kernel_on_a_gpu_and_torch_for_training(caplog, monkeypatch):
    monkeypatch.setattr("bsa.attention._announced", set())
    q, k, v = (torch.randn(1, 2, 256, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    with caplog.at_level("INFO", logger="bsa"):
        inference = block_sparse_attention(q, k, v, Grid(4, 8, 8), BSAConfig(0.5))
        training = block_sparse_attention(q.requires_grad_(), k, v, Grid(4, 8, 8), BSAConfig(0.5))
    training.sum().backward()
    assert ["triton backend" in record.getMessage() for record in caplog.records] == [True, False]
    torch.testing.assert_close(training, inference, rtol=2e-2, atol=2e-2)
    with pytest.raises(ValueError, match="forward only"):
        block_sparse_attention(q, k, v, Grid(4, 8, 8), BSAConfig(0.5), backend="triton")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_top_k_never_waits_for_the_gpu(backend):
    q, k, v = (torch.randn(2, 3, 256, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    block_sparse_attention(q, k, v, Grid(4, 8, 8), BSAConfig(0.5), backend=backend)
    torch.cuda.set_sync_debug_mode("error")
    try:
        block_sparse_attention(q, k, v, Grid(4, 8, 8), BSAConfig(0.5), backend=backend)
    finally:
        torch.cuda.set_sync_debug_mode("default")
