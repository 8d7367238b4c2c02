from itertools import product

import pytest
import torch

from bsa import BlockLayout, Grid

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
