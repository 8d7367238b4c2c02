"""Attention on tokens that stand in block order already, against the same operation on raster order."""

import math

import pytest
import torch

from bsa import BlockLayout, BSAConfig, Grid, block_order_attention, block_sparse_attention, nested_layouts
from bsa.selection import pool
from bsa.variants import BASELINE, TUNED, VARIANTS, Tuning, tuning_for, tuning_key

ROWS = [
    pytest.param((4, 8, 8), (4, 4, 4), {"sparsity": 0.5}, id="whole"),
    pytest.param((5, 7, 9), (2, 3, 4), {"sparsity": 0.8}, id="ragged"),
    pytest.param((3, 5, 7), (4, 4, 4), {"sparsity": 0.5}, id="chunk-longer-than-grid"),
    pytest.param((5, 7, 9), (2, 3, 4), {"cdf_threshold": 0.6}, id="threshold-ragged"),
    pytest.param((4, 6, 6), (2, 2, 2), {"sparsity": 0.8, "cdf_threshold": 0.5}, id="both"),
]


def make(grid, chunk, rule, dtype=torch.float64):
    torch.manual_seed(0)
    config = BSAConfig(**{"sparsity": None, "chunk_k": chunk, **rule}, chunk_q=chunk)
    layout, _ = nested_layouts(Grid(*grid), config.chunk_q, config.chunk_k)
    return config, layout, *(torch.randn(2, math.prod(grid), 3, 16, dtype=dtype) for _ in range(3))


def test_means_that_the_selection_does_not_compare_are_refused():
    config, layout, q, k, v = make((4, 4, 4), (2, 2, 2), {"sparsity": 0.5, "selection": "cells"})
    means = tuple(layout.pool(layout.blocks_from_order(x)) for x in (q, k))
    with pytest.raises(ValueError, match=r"'cells' compares means of 5 axes, and pooled has 4 and 4; leave it out"):
        block_order_attention(q, k, v, layout, config, pooled=means)


NESTED = [
    pytest.param((4, 8, 8), (4, 4, 8), {"sparsity": 0.5, "chunk_k": (2, 2, 4)}, id="fine-keys"),
    pytest.param((5, 7, 9), (4, 4, 4), {"sparsity": 0.8, "chunk_k": (2, 4, 2)}, id="fine-keys-ragged"),
    pytest.param((5, 7, 9), (2, 2, 4), {"cdf_threshold": 0.6, "chunk_k": (4, 4, 4)}, id="coarse-keys-threshold"),
    pytest.param((3, 6, 7), (4, 4, 4), {"sparsity": 0.5, "chunk_k": (2, 2, 4), "selection": "cells"}, id="by-cells"),
]


@pytest.mark.parametrize("pooled_before", [False, True])
@pytest.mark.parametrize(("grid", "chunk", "rule"), ROWS + NESTED)
def test_equals_the_operation_on_raster_order(grid, chunk, rule, pooled_before):
    config, layout, *raster = make(grid, chunk, rule)
    order, back = layout.order(torch.device("cpu")), layout.place_of_token(torch.device("cpu"))
    q, k, v = (x[:, order] for x in raster)
    both = nested_layouts(layout.grid, config.chunk_q, config.chunk_k)
    pooled = None
    if pooled_before:
        pooled = tuple(pool(by.blocks_from_order(x), by, config) for x, by in zip((q, k), both, strict=True))
    out, selection = block_order_attention(q, k, v, layout, config, pooled=pooled, return_selection=True)
    raster = (x.transpose(1, 2) for x in raster)
    expected, same = block_sparse_attention(*raster, layout.grid, config, return_selection=True)
    blocks = both[1].blocks.volume
    assert torch.equal(selection.mask(blocks), same.mask(blocks)) and torch.equal(selection.counts, same.counts)
    # The same sums in fp64.
    torch.testing.assert_close(out[:, back].transpose(1, 2), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lead", [0, 2])
@pytest.mark.parametrize(("grid", "chunk", "rule"), ROWS[:2] + NESTED)
def test_a_given_selection_is_used(grid, chunk, rule, lead):
    """What one call selected, given to the next with other queries and keys, is what it attends to: with the first
    call's it gives the same output."""
    config, _, *raster = make(grid, chunk, rule)
    layout, k_layout = nested_layouts(Grid(*grid), config.chunk_q, config.chunk_k, lead)
    q, k, v = (x[:, layout.order(torch.device("cpu"))] for x in raster)
    expected, selection = block_order_attention(q, k, v, layout, config, return_selection=True)
    out, same = block_order_attention(q, k, v, layout, config, selection=selection, return_selection=True)
    assert torch.equal(out, expected) and same is selection
    other, used = block_order_attention(-q, k, v, layout, config, selection=selection, return_selection=True)
    assert used is selection
    *raster, v_raster = (x.transpose(1, 2) for x in (-raster[0], *raster[1:]))
    oracle = block_sparse_attention(
        *raster, v_raster, layout.grid, config, conditioning=lead, selection=selection, backend="reference"
    )
    back = layout.place_of_token(torch.device("cpu"))
    # The same sums in fp64.
    torch.testing.assert_close(other[:, back].transpose(1, 2), oracle, rtol=1e-12, atol=1e-12)


def test_a_selection_of_other_shapes_is_refused():
    config, layout, q, k, v = make((4, 8, 8), (4, 4, 4), {"sparsity": 0.5})
    _, selection = block_order_attention(q, k, v, layout, config, return_selection=True)
    with pytest.raises(ValueError, match=r"lists for \[2, 3, 4\] .* but there are \[1, 3, 4\]"):
        block_order_attention(q[:1], k[:1], v[:1], layout, config, selection=selection)


@pytest.mark.parametrize(("grid", "chunk", "rule"), ROWS[:3])
def test_order_and_block_major_agree(grid, chunk, rule):
    _, layout, x, *_ = make(grid, chunk, rule)
    device = x.device
    ordered = x[:, layout.order(device)]
    assert torch.equal(ordered[:, layout.place_of_token(device)], x)
    blocks = layout.blocks_from_order(ordered)
    assert torch.equal(blocks, layout.to_blocks(x.transpose(1, 2)))
    assert torch.equal(layout.order_from_blocks(blocks), ordered)
    for number, (start, size) in enumerate(zip(layout.starts(device), layout.sizes(device), strict=True)):
        assert torch.equal(blocks[:, :, number, :size].transpose(1, 2), ordered[:, start : start + size])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_pooling_without_a_copy_is_the_same_mean(dtype):
    layout = BlockLayout(Grid(5, 7, 9), Grid(4, 4, 4))
    blocks = layout.to_blocks(torch.randn(2, 3, 315, 8).to(dtype))
    # At most 64 fp32 additions of numbers near 1, of which up to 63 are taken off again.
    torch.testing.assert_close(layout._pool_without_copy(blocks, torch.float32), layout.pool(blocks), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"k": torch.zeros(1, 255, 2, 16)}, r"one shape.*\[1, 255, 2, 16\]", id="shapes"),
        pytest.param({"v": torch.zeros(1, 256, 2, 16).half()}, r"one dtype.*float16", id="dtypes"),
        pytest.param({"layout": BlockLayout(Grid(4, 8, 9), Grid(4, 4, 4))}, r"256 tokens.*4x8x9 has 288", id="grid"),
        pytest.param(
            {"config": BSAConfig(0.5, None, (4, 4, 4), (4, 4, 8))}, r"4x4x4 for queries and 4x4x8 for keys", id="chunks"
        ),
        pytest.param({"backend": "reference"}, r"unknown backend 'reference'.*triton, torch", id="backend"),
        pytest.param({"scale": -1.0}, r"scale must be positive.*-1\.0", id="scale"),
    ],
)
def test_misuse_is_refused_in_one_sentence(change, message):
    given = {name: torch.zeros(1, 256, 2, 16) for name in "qkv"}
    given |= {"layout": BlockLayout(Grid(4, 8, 8), Grid(4, 4, 4)), "config": BSAConfig(0.5)}
    with pytest.raises(ValueError, match=message):
        block_order_attention(**given | change)


def test_the_measured_choices_name_variants_that_exist():
    import json

    for gpu, entries in json.loads(TUNED.read_text(encoding="utf-8")).items():
        for key, entry in entries.items():
            assert entry["variant"] in VARIANTS, (gpu, key)
            assert isinstance(entry["fused_top_k"], bool), (gpu, key)


def test_what_was_not_measured_runs_on_the_baseline(tmp_path, monkeypatch):
    table = tmp_path / "tuned.json"
    key = tuning_key("bfloat16", 128, 64, 64)
    other = "descriptors-64x64-w4-s3"
    table.write_text(f'{{"GPU A": {{"{key}": {{"variant": "{other}", "fused_top_k": true}}}}}}')
    monkeypatch.setattr("bsa.variants.TUNED", table)
    tuning_for.cache_clear()
    try:
        assert tuning_for("GPU A", "bfloat16", 128, 64, 64) == Tuning(VARIANTS[other], True)
        assert tuning_for("GPU A", "float16", 128, 64, 64) == Tuning(BASELINE, False)
        assert tuning_for("GPU B", "bfloat16", 128, 64, 64) == Tuning()
        tuning_for.cache_clear()
        monkeypatch.setenv("TRITON_AUTOTUNE_ENABLE", "0")
        assert tuning_for("GPU A", "bfloat16", 128, 64, 64) == Tuning()
    finally:
        tuning_for.cache_clear()
