import math

import pytest
import torch

from bsa import BlockLayout, BlockSelection, BSAConfig, Grid, select_blocks


def pooled_mass(q, k, q_layout, k_layout, scale):
    """Estimated attention mass of every block pair in fp64, block by block: the rule written out slowly."""
    queries, keys = q.double(), k.double()
    q_blocks = [queries[:, :, q_layout.block_of_token(q.device) == i] for i in range(q_layout.blocks.volume)]
    k_blocks = [keys[:, :, k_layout.block_of_token(q.device) == j] for j in range(k_layout.blocks.volume)]
    rows = []
    for q_block in q_blocks:
        mean_q = q_block.mean(2)
        rows.append(torch.stack([b.shape[2] * (scale * (mean_q * b.mean(2)).sum(-1)).exp() for b in k_blocks], dim=-1))
    mass = torch.stack(rows, dim=2)
    return mass / mass.sum(-1, keepdim=True)


def boxes(x, grid, chunk):
    """The tokens of every chunk, [B, H, tokens, D] each, in raster order of the chunks."""
    x = x.unflatten(2, grid)
    return [
        x[:, :, t : t + chunk[0], h : h + chunk[1], w : w + chunk[2]]
        for t in range(0, grid[0], chunk[0])
        for h in range(0, grid[1], chunk[1])
        for w in range(0, grid[2], chunk[2])
    ]


def cell_mass(q, k, q_layout, k_layout, scale):
    """The same by cells of 2x2x2 tokens, cut block by block and compared one by one: see bsa.cells."""
    grid = q_layout.grid

    def cells(x, chunk):  # of each block: (mean, tokens) of each cell
        blocks = [boxes(block.flatten(2, 4), block.shape[2:5], (2, 2, 2)) for block in boxes(x.double(), grid, chunk)]
        return [[(cell.flatten(2, 4).mean(2), cell[0, 0, ..., 0].numel()) for cell in block] for block in blocks]

    key_blocks = cells(k, k_layout.chunk)
    rows = []
    for query_block in cells(q, q_layout.chunk):
        row = 0
        for mean_q, tokens in query_block:
            block_mass = [
                sum(size * (scale * (mean_q * mean_k).sum(-1)).exp() for mean_k, size in key_block)
                for key_block in key_blocks
            ]
            mass = torch.stack(block_mass, dim=-1)
            row = row + tokens * mass / mass.sum(-1, keepdim=True)
        rows.append(row / sum(tokens for _, tokens in query_block))
    return torch.stack(rows, dim=2)


ESTIMATES = {"mean": pooled_mass, "cells": cell_mass}
# Masses of cells are compared in fp32, and not their logarithms: a head with too peaked attention is full of ties.
SPREADS = {"mean": 6.0, "cells": 2.0}


def select(grid, config, dim=16, spread=6.0, seed=0):
    torch.manual_seed(seed)
    q_layout, k_layout = BlockLayout(Grid(*grid), config.chunk_q), BlockLayout(Grid(*grid), config.chunk_k)
    q, k = (spread * torch.randn(2, 3, q_layout.grid.volume, dim) for _ in range(2))
    q *= torch.tensor([0.2, 1.0, 5.0]).view(3, 1, 1)  # one head with flat attention, one with peaked attention
    scale = 1 / math.sqrt(dim)
    selection = select_blocks(q_layout.to_blocks(q), k_layout.to_blocks(k), q_layout, k_layout, config, scale)
    return selection, ESTIMATES[config.selection](q, k, q_layout, k_layout, scale)


GRIDS = [
    pytest.param((4, 8, 8), (2, 2, 2), (2, 2, 2), id="divisible"),
    pytest.param((5, 7, 9), (2, 3, 4), (3, 2, 5), id="ragged-unequal-chunks"),
    pytest.param((3, 9, 10), (3, 5, 7), (1, 3, 3), id="odd-chunks"),
]


@pytest.mark.parametrize("scores", list(ESTIMATES))
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.75, 0.9375])
@pytest.mark.parametrize(("grid", "chunk_q", "chunk_k"), GRIDS)
def test_top_k_keeps_the_heaviest_blocks(grid, chunk_q, chunk_k, sparsity, scores):
    config = BSAConfig(sparsity, None, chunk_q, chunk_k, scores)
    selection, mass = select(grid, config, spread=SPREADS[scores])
    kept = config.top_k(mass.shape[-1])
    expected = mass.topk(kept, dim=-1).indices.sort(dim=-1).values
    assert selection.indices.dtype == selection.counts.dtype == torch.int32
    assert (selection.counts == kept).all()
    assert torch.equal(selection.indices.long(), expected)


@pytest.mark.parametrize("scores", list(ESTIMATES))
@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize(("grid", "chunk_q", "chunk_k"), GRIDS)
def test_threshold_is_reached_and_no_block_is_wasted(grid, chunk_q, chunk_k, threshold, scores):
    config = BSAConfig(None, threshold, chunk_q, chunk_k, scores)
    selection, mass = select(grid, config, spread=SPREADS[scores])
    mask = selection.mask(mass.shape[-1])
    assert torch.equal(mask.sum(-1), selection.counts.long())
    assert selection.counts.min() >= 1
    kept = torch.where(mask, mass, 0)
    # Selection sums fp32 masses; the measuring stick is fp64.
    assert (kept.sum(-1) >= threshold - 1e-6).all()
    lightest = torch.where(mask, mass, 2).amin(-1)
    assert (kept.sum(-1) - lightest < threshold + 1e-6).all()
    assert (lightest >= torch.where(mask, 0, mass).amax(-1)).all()


def test_one_heavy_block_is_kept_though_it_exceeds_the_threshold():
    layout = BlockLayout(Grid(1, 1, 4), Grid(1, 1, 1))
    q = torch.ones(1, 1, 4, 1, 1)
    k = torch.tensor([0.0, 9.0, 0.0, 0.0]).view(1, 1, 4, 1, 1)
    selection = select_blocks(q, k, layout, layout, BSAConfig(None, 0.3, (1, 1, 1), (1, 1, 1)), 1.0)
    assert selection.counts.flatten().tolist() == [1, 1, 1, 1]
    assert selection.indices[0, 0, :, 0].tolist() == [1, 1, 1, 1]


def test_threshold_one_keeps_everything():
    selection, mass = select((4, 8, 8), BSAConfig(None, 1.0, (2, 2, 2), (2, 2, 2)), spread=1.0)
    assert (selection.counts == mass.shape[-1]).all()


@pytest.mark.parametrize(("grid", "chunk_q", "chunk_k"), GRIDS)
def test_both_rules_keep_the_larger_count(grid, chunk_q, chunk_k):
    both, mass = select(grid, BSAConfig(0.8, 0.6, chunk_q, chunk_k))
    top_k, _ = select(grid, BSAConfig(0.8, None, chunk_q, chunk_k))
    threshold, _ = select(grid, BSAConfig(None, 0.6, chunk_q, chunk_k))
    # Otherwise one rule always won and this test would say little.
    assert (threshold.counts > top_k.counts).any()
    assert (threshold.counts < top_k.counts).any()
    assert torch.equal(both.counts, torch.maximum(top_k.counts, threshold.counts))
    blocks = mass.shape[-1]
    assert torch.equal(both.mask(blocks), top_k.mask(blocks) | threshold.mask(blocks))


@pytest.mark.parametrize(
    "config", [BSAConfig(0.5, None, (2, 2, 2), (2, 2, 2)), BSAConfig(None, 0.7, (2, 2, 2), (2, 2, 2))]
)
def test_valid_prefix_is_ascending_and_indices_stay_in_range(config):
    selection, mass = select((4, 8, 8), config)
    assert selection.indices.min() >= 0
    assert selection.indices.max() < mass.shape[-1]
    for row, count in zip(selection.indices.flatten(0, 2).tolist(), selection.counts.flatten().tolist(), strict=True):
        assert row[:count] == sorted(set(row[:count]))


def test_scores_stay_fp32_under_autocast():
    config = BSAConfig(0.5, None, (2, 2, 2), (2, 2, 2))
    expected, _ = select((4, 8, 8), config, spread=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        selection, _ = select((4, 8, 8), config, spread=1.0)
    assert torch.equal(selection.indices, expected.indices)


def test_mask_and_density_count_valid_entries_only():
    selection = BlockSelection(
        indices=torch.tensor([[[[0, 2, 0], [1, 3, 4]]]], dtype=torch.int32),
        counts=torch.tensor([[[2, 3]]], dtype=torch.int32),
    )
    assert selection.mask(5).int().tolist() == [[[[1, 0, 1, 0, 0], [0, 1, 0, 1, 1]]]]
    assert float(selection.density(5)) == 0.5
