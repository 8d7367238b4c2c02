from itertools import product

import pytest
import torch

from bsa import BlockLayout, Grid
from bsa.layout import nested_layouts

GRIDS = [
    pytest.param((4, 8, 8), (4, 4, 4), id="divisible"),
    pytest.param((5, 7, 9), (2, 3, 4), id="ragged-every-axis"),
    pytest.param((3, 5, 7), (4, 4, 4), id="chunk-longer-than-grid"),
    pytest.param((3, 9, 10), (3, 5, 7), id="odd-chunk"),
    pytest.param((1, 1, 5), (1, 1, 2), id="line"),
    pytest.param((2, 3, 2), (1, 1, 1), id="one-token-blocks"),
]


def blocks_by_hand(grid, chunk):
    """Raster token numbers of each block, blocks and tokens both in raster order."""
    starts = product(*(range(0, size, step) for size, step in zip(grid, chunk)))
    for origin in starts:
        sides = [range(o, min(o + step, size)) for o, step, size in zip(origin, chunk, grid)]
        yield [(t * grid[1] + h) * grid[2] + w for t, h, w in product(*sides)]


@pytest.mark.parametrize(("grid", "chunk"), GRIDS)
def test_blocks_hold_their_own_tokens_first(grid, chunk):
    layout = BlockLayout(Grid(*grid), Grid(*chunk))
    tokens = torch.arange(layout.grid.volume, dtype=torch.float64).view(1, 1, -1, 1)
    blocks = layout.to_blocks(tokens)[0, 0, :, :, 0].long().tolist()
    expected = list(blocks_by_hand(grid, chunk))
    sizes = layout.sizes(torch.device("cpu")).tolist()
    assert sizes == [len(block) for block in expected]
    for block, owned in zip(blocks, expected, strict=True):
        assert block[: len(owned)] == owned
        assert set(block[len(owned) :]) <= {owned[0]}
    block_of_token = layout.block_of_token(torch.device("cpu")).tolist()
    assert all(block_of_token[token] == number for number, owned in enumerate(expected) for token in owned)


@pytest.mark.parametrize(("grid", "chunk"), GRIDS)
def test_round_trip_drops_padding(grid, chunk):
    layout = BlockLayout(Grid(*grid), Grid(*chunk))
    x = torch.randn(2, 3, layout.grid.volume, 5)
    blocks = layout.to_blocks(x.transpose(1, 2).contiguous().transpose(1, 2))
    padding = torch.arange(layout.chunk.volume) >= layout.sizes(x.device)[:, None]
    blocks[:, :, padding] = float("nan")
    assert torch.equal(layout.from_blocks(blocks), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("grid", "chunk"), GRIDS)
def test_pooling_ignores_padding(grid, chunk, dtype):
    layout = BlockLayout(Grid(*grid), Grid(*chunk))
    x = torch.randn(2, 2, layout.grid.volume, 8).to(dtype)
    pooled = layout.pool(layout.to_blocks(x))
    expected = torch.stack([x[:, :, owned].double().mean(2) for owned in blocks_by_hand(grid, chunk)], dim=2)
    assert pooled.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # At most 105 fp32 additions of numbers near 1: rounding stays well under 1e-5.
    torch.testing.assert_close(pooled.double(), expected, rtol=0, atol=1e-5)


def test_tables_made_in_inference_mode_serve_training_later():
    layout = BlockLayout(Grid(3, 4, 5), Grid(2, 3, 2))
    with torch.inference_mode():
        layout.to_blocks(torch.randn(1, 1, 60, 4))
    x = torch.randn(1, 1, 60, 4, requires_grad=True)
    layout.from_blocks(layout.to_blocks(x)).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


NESTED = [
    pytest.param((4, 8, 8), (4, 4, 8), (2, 2, 4), id="divisible"),
    pytest.param((5, 7, 9), (4, 4, 4), (2, 4, 2), id="ragged-every-axis"),
    pytest.param((3, 6, 7), (4, 4, 4), (2, 2, 4), id="chunk-longer-than-grid"),
    pytest.param((4, 5, 6), (2, 2, 2), (4, 4, 2), id="larger-keys"),
    pytest.param((3, 5, 7), (2, 3, 4), (2, 3, 4), id="equal"),
]


@pytest.mark.parametrize(("grid", "chunk_q", "chunk_k"), NESTED)
def test_nested_chunks_share_one_order(grid, chunk_q, chunk_k):
    """Every block of both layouts is a run of the same token order, and holds the tokens of its box."""
    device = torch.device("cpu")
    layouts = nested_layouts(Grid(*grid), Grid(*chunk_q), Grid(*chunk_k))
    order = layouts[0].order(device)
    assert torch.equal(order, layouts[1].order(device))
    for layout, chunk in zip(layouts, (chunk_q, chunk_k), strict=True):
        boxes = [set(box) for box in blocks_by_hand(grid, chunk)]
        rows = zip(layout.starts(device), layout.sizes(device), layout.raster_numbers(device), strict=True)
        for number, (start, size, raster) in enumerate(rows):
            tokens = order[start : start + size]
            assert set(tokens.tolist()) == boxes[raster]
            assert (layout.block_of_token(device)[tokens] == number).all()
        assert sorted(layout.raster_numbers(device).tolist()) == list(range(len(boxes)))


@pytest.mark.parametrize(("grid", "chunk_q", "chunk_k"), NESTED)
def test_nested_layouts_convert_both_ways(grid, chunk_q, chunk_k):
    x = torch.randn(2, 3, Grid(*grid).volume, 5)
    for layout in nested_layouts(Grid(*grid), Grid(*chunk_q), Grid(*chunk_k)):
        ordered = x[:, :, layout.order(x.device)].transpose(1, 2)
        blocks = layout.to_blocks(x)
        assert torch.equal(layout.blocks_from_order(ordered), blocks)
        assert torch.equal(layout.order_from_blocks(blocks), ordered)
        assert torch.equal(layout.from_blocks(blocks), x)


def test_chunks_that_do_not_divide_have_no_order_in_common():
    with pytest.raises(ValueError, match="chunks of 4x4x4 and 2x3x4 share no block order"):
        nested_layouts(Grid(4, 8, 8), Grid(4, 4, 4), Grid(2, 3, 4))
    with pytest.raises(ValueError, match="neither divides the other"):
        nested_layouts(Grid(4, 8, 8), Grid(4, 2, 4), Grid(2, 4, 4))
