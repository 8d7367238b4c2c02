"""Attention with conditioning frames, against a dense mask in fp64 that is written out in this file."""

import itertools
import math

import pytest
import torch

from bsa import BlockLayout, BSAConfig, Grid, block_order_attention, block_sparse_attention
from bsa.cells import pool_cells
from bsa.selection import pool

ROWS = [  # grid, conditioning frames, chunks of queries and keys, head size, rule
    pytest.param((8, 8, 8), 4, (4, 4, 4), (4, 4, 4), 16, {"sparsity": 0.5}, id="whole-blocks"),
    pytest.param((8, 8, 8), 1, (4, 4, 4), (4, 4, 4), 16, {"sparsity": 0.5}, id="one-frame"),
    pytest.param((5, 8, 8), 1, (4, 4, 4), (4, 4, 4), 16, {"sparsity": 0.75}, id="one-frame-and-a-whole-block"),
    pytest.param((7, 5, 9), 3, (4, 4, 4), (4, 4, 4), 24, {"sparsity": 0.6}, id="ragged-everywhere"),
    pytest.param((7, 5, 9), 5, (2, 3, 4), (3, 2, 5), 17, {"sparsity": 0.7}, id="unequal-chunks"),
    pytest.param((6, 4, 6), 4, (4, 4, 4), (8, 4, 4), 16, {"sparsity": 0.5}, id="chunk-longer-than-both"),
    pytest.param((6, 6, 6), 2, (2, 2, 2), (2, 2, 2), 16, {"cdf_threshold": 0.6}, id="threshold"),
    pytest.param((6, 5, 6), 1, (2, 2, 2), (2, 2, 2), 16, {"sparsity": 0.8, "cdf_threshold": 0.5}, id="both-rules"),
    pytest.param((2, 4, 4), 1, (4, 4, 4), (4, 4, 4), 16, {"sparsity": 0.9375}, id="one-block-each"),
]


def make(grid, chunk_q, chunk_k, dim, rule, **kwargs):
    torch.manual_seed(0)
    config = BSAConfig(**{"sparsity": None, **rule}, chunk_q=chunk_q, chunk_k=chunk_k, **kwargs)
    q, k, v = (torch.randn(2, 2, math.prod(grid), dim, dtype=torch.float64) for _ in range(3))
    return q * torch.linspace(5, 0.5, q.shape[2])[:, None], k, v, Grid(*grid), config


def blocks_of(grid, chunk, conditioning):
    """Token numbers of each block, of the conditioning frames first; each part is cut from its own first frame on."""
    for first, last in ((0, conditioning), (conditioning, grid.t)):
        rows, columns = range(0, grid.h, chunk[1]), range(0, grid.w, chunk[2])
        for t, h, w in itertools.product(range(first, last, chunk[0]), rows, columns):
            ends = last, grid.h, grid.w
            sides = [range(at, min(at + step, end)) for at, step, end in zip((t, h, w), chunk, ends)]
            yield [(a * grid.h + b) * grid.w + c for a, b, c in itertools.product(*sides)]


def dense_mask(q, k, grid, config, conditioning):
    """Which tokens see which, bool [B, H, S, S], from the definition: the best blocks of those that may be seen."""
    queries, keys = (list(blocks_of(grid, chunk, conditioning)) for chunk in (config.chunk_q, config.chunk_k))
    given = conditioning * grid.h * grid.w
    mask = torch.zeros(*q.shape[:2], grid.volume, grid.volume, dtype=torch.bool)
    for b, h in itertools.product(range(q.shape[0]), range(q.shape[1])):
        for block in queries:
            seen = [other for other in keys if block[0] >= given or other[0] < given]
            pooled = torch.stack([k[b, h, other].mean(0) for other in seen])
            sizes = torch.tensor([len(other) for other in seen])
            mass = (pooled @ q[b, h, block].mean(0) / math.sqrt(q.shape[-1]) + sizes.log()).softmax(0)
            best = mass.argsort(descending=True)
            kept = config.top_k(len(seen))
            if config.cdf_threshold is not None:
                kept = max(kept, int((mass[best].cumsum(0) < config.cdf_threshold).sum()) + 1)
            for number in best[:kept]:
                mask[b, h, torch.tensor(block)[:, None], torch.tensor(seen[number])] = True
    return mask


def masked(q, k, v, mask):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return scores.masked_fill(~mask, -math.inf).softmax(-1) @ v


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize(("grid", "conditioning", "chunk_q", "chunk_k", "dim", "rule"), ROWS)
def test_matches_the_dense_mask(backend, grid, conditioning, chunk_q, chunk_k, dim, rule):
    q, k, v, grid, config = make(grid, chunk_q, chunk_k, dim, rule)
    out, selection = block_sparse_attention(
        q, k, v, grid, config, conditioning=conditioning, backend=backend, return_selection=True
    )
    mask = dense_mask(q, k, grid, config, conditioning)
    # The same sums in fp64.
    torch.testing.assert_close(out, masked(q, k, v, mask), rtol=1e-10, atol=1e-12)
    layouts = [BlockLayout(grid, Grid(*chunk), conditioning) for chunk in (chunk_q, chunk_k)]
    blocks = selection.mask(layouts[1].blocks.volume)
    for axis, layout in enumerate(layouts, 2):
        blocks = blocks.index_select(axis, layout.block_of_token(q.device))
    assert torch.equal(blocks, mask)


@pytest.mark.parametrize(("grid", "conditioning", "chunk_q", "chunk_k", "dim", "rule"), ROWS)
def test_queries_of_the_conditioning_frames_may_be_left_out(grid, conditioning, chunk_q, chunk_k, dim, rule):
    q, k, v, grid, config = make(grid, chunk_q, chunk_k, dim, rule)
    whole, all_blocks = block_sparse_attention(q, k, v, grid, config, conditioning=conditioning, return_selection=True)
    given = conditioning * grid.h * grid.w
    rest, selection = block_sparse_attention(
        q[:, :, given:], k, v, grid, config, conditioning=conditioning, return_selection=True
    )
    assert torch.equal(rest, whole[:, :, given:])
    assert torch.equal(selection.counts, all_blocks.counts[:, :, -selection.counts.shape[2] :])


@pytest.mark.parametrize("selection", ["mean", "cells"])
@pytest.mark.parametrize("means", [False, True])
@pytest.mark.parametrize(("grid", "conditioning", "chunk_q", "chunk_k", "dim", "rule"), [ROWS[i] for i in (0, 1, 3, 6)])
def test_block_order_equals_raster_order(grid, conditioning, chunk_q, chunk_k, dim, rule, means, selection):
    *raster, grid, config = make(grid, chunk_q, chunk_k, dim, rule, selection=selection)
    layout, given = BlockLayout(grid, config.chunk_q, conditioning), conditioning * grid.h * grid.w
    expected = block_sparse_attention(*raster, grid, config, conditioning=conditioning)
    order, back = layout.order(expected.device), layout.place_of_token(expected.device)
    assert order[:given].max() < given  # the conditioning frames come first
    q, k, v = (x.transpose(1, 2)[:, order] for x in raster)
    pooled = [pool(layout.blocks_from_order(x), layout, config) for x in (q, k)]
    out = block_order_attention(q, k, v, layout, config, pooled=tuple(pooled) if means else None)
    torch.testing.assert_close(out[:, back].transpose(1, 2), expected, rtol=1e-12, atol=1e-12)
    pooled[0] = pooled[0][:, :, layout.first.blocks.volume :]
    rest = block_order_attention(q[:, given:], k, v, layout, config, pooled=tuple(pooled) if means else None)
    assert torch.equal(rest, out[:, given:])


@pytest.mark.parametrize(("grid", "conditioning", "chunk_q", "chunk_k", "dim", "rule"), ROWS)
def test_the_plan_knows_the_blocks(grid, conditioning, chunk_q, chunk_k, dim, rule):
    grid, config = Grid(*grid), BSAConfig(**{"sparsity": None, **rule}, chunk_q=chunk_q, chunk_k=chunk_k)
    plan = config.blocks(grid, conditioning)
    queries, keys = (list(blocks_of(grid, chunk, conditioning)) for chunk in (chunk_q, chunk_k))
    assert plan.q_blocks.volume + plan.first.q_blocks.volume == len(queries)
    assert plan.k_blocks.volume == len(keys)
    given = conditioning * grid.h * grid.w
    assert plan.first.k_blocks.volume == sum(block[0] < given for block in keys)
    assert plan.work.block_pairs == plan.q_blocks.volume * len(keys)
    if config.selector.uniform:
        kept = plan.kept * plan.q_blocks.volume + plan.first.kept * plan.first.q_blocks.volume
        seen = plan.q_blocks.volume * len(keys) + plan.first.q_blocks.volume * plan.first.k_blocks.volume
        assert plan.density == kept / seen
    else:
        assert plan.density is None


@pytest.mark.parametrize(("grid", "conditioning", "chunk_q", "chunk_k", "dim", "rule"), ROWS[:6])
def test_cells_begin_where_their_block_does(grid, conditioning, chunk_q, chunk_k, dim, rule):
    """Also in blocks after an odd number of given frames: as in a video of the other frames alone."""
    layout = BlockLayout(Grid(*grid), Grid(*chunk_k), conditioning)
    x = torch.randn(1, 1, layout.grid.volume, dim, dtype=torch.float64)
    rest = x[:, :, conditioning * layout.grid.h * layout.grid.w :]
    whole, alone = pool_cells(layout.to_blocks(x), layout), pool_cells(layout.rest.to_blocks(rest), layout.rest)
    whole = whole[:, :, layout.first.blocks.volume :]
    # Blocks of the given frames may be longer, so that those of the rest have cells without tokens behind.
    torch.testing.assert_close(whole[:, :, :, : alone.shape[3]], alone, rtol=0, atol=1e-12)
    assert not whole[:, :, :, alone.shape[3] :].any()


def test_all_frames_given_are_none_given():
    q, k, v, grid, config = make((4, 8, 8), (4, 4, 4), (4, 4, 4), 16, {"sparsity": 0.5})
    expected = block_sparse_attention(q, k, v, grid, config)
    assert torch.equal(block_sparse_attention(q, k, v, grid, config, conditioning=4), expected)
    assert config.blocks(grid, 4) == config.blocks(grid)


@pytest.mark.parametrize(
    ("tokens", "conditioning", "message"),
    [
        pytest.param(128, 1, r"q has 128 tokens .* 4x8x8 has 256, and 192 without the first 1 frames", id="queries"),
        pytest.param(192, 0, r"q has 192 tokens but the grid 4x8x8 has 256;", id="none-given"),
        pytest.param(256, 5, r"5 frames cannot be cut apart from the 4 of the grid 4x8x8; use 0 to 4", id="too-many"),
        pytest.param(256, -1, r"-1 frames cannot be cut apart", id="negative"),
    ],
)
def test_misuse_is_refused_in_one_sentence(tokens, conditioning, message):
    k = torch.zeros(1, 2, 256, 16)
    with pytest.raises(ValueError, match=message):
        block_sparse_attention(k[:, :, :tokens], k, k, (4, 8, 8), BSAConfig(0.5), conditioning=conditioning)
