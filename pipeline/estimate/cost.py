"""What a generation costs: operations and bytes, counted from the checkpoint's configuration and the request.

Counts, not seconds: `pipeline.estimate.estimator` turns them into seconds with rates measured on the machine. The rates
here only say how the parts compare with each other, which fills the gap between a first measurement and another size.
"""

from __future__ import annotations

from typing import NamedTuple

from bsa import BSAConfig, Grid
from pipeline.checkpoint.shape import ModelShape
from pipeline.machine.gpus import Device

TEXT_TOKENS = 40  # of a prompt of a sentence or two; cross-attention is too small a part for more exactness


class Rates(NamedTuple):
    """How fast the parts run, in operations a second, and what else they cost, in operations.

    layout: per element moved into blocks and back. select: per pair of pooled blocks; cells: per pair of cells, where
    those are compared. ragged: factor on all of sparse attention where the chunks do not divide the grid. launch:
    seconds per layer that do not depend on the size.
    """

    linear: float
    dense: float
    sparse: float
    decode: float
    layout: float
    select: float
    cells: float
    ragged: float
    launch: float


# Measured once with benchmarks/: two CPU threads in fp32, one H200 in bfloat16. Only their ratios matter.
_RATES = {
    "cpu": Rates(73e9, 155e9, 115e9, 136e9, 530, 500, 250, 1.6, 1.5e-3),
    "cuda": Rates(350e12, 600e12, 400e12, 50e12, 4000, 20000, 280, 1.3, 1e-3),
}


def reference_rates(device: Device) -> Rates:
    return _RATES.get(device.type, _RATES["cpu"])


def linear_seconds(shape: ModelShape, tokens: int, rates: Rates) -> float:
    """One block without its self-attention, for one row of the batch, at the reference rates."""
    weights = 6 * shape.hidden**2 + 3 * shape.hidden * shape.ffn
    return (2 * tokens * weights + 4 * tokens * TEXT_TOKENS * shape.hidden) / rates.linear + rates.launch


def dense_seconds(shape: ModelShape, tokens: int, rates: Rates) -> float:
    """The self-attention of one block, every token with every token."""
    return 4 * tokens**2 * shape.hidden / rates.dense


def sparse_seconds(shape: ModelShape, grid: Grid, bsa: BSAConfig, kept: float, rates: Rates) -> float:
    """The self-attention of one block with `kept` key blocks per query block: layout, selection, attention.

    A block that the edge cuts short costs as much as a whole one, because it is padded to its chunk.
    """
    plan = bsa.blocks(grid)
    chunk_k = Grid(*map(min, grid, bsa.chunk_k)).volume
    pairs = 4 * grid.volume * kept * chunk_k * shape.hidden
    layout = rates.layout * grid.volume * shape.hidden
    select = shape.heads * (rates.select * plan.work.block_pairs + rates.cells * plan.work.cell_pairs)
    return (pairs + layout + select) / rates.sparse * (rates.ragged if plan.ragged else 1)


def decode_seconds(shape: ModelShape, frames: int, height: int, width: int, rates: Rates) -> float:
    """The VAE's decoder: its convolutions cost as much for every pixel, about 800 width^2 per position."""
    positions = frames * height * width / shape.decoder_patch**2
    return positions * 800 * shape.decoder_width**2 / rates.decode


def kept_blocks(bsa: BSAConfig, grid: Grid, density: float | None = None) -> float:
    """Key blocks per query block. Where a cdf threshold decides, from a measured density, and without one the most
    that it can be: the best blocks always hold at least their share of the mass."""
    selector, key_blocks = bsa.selector, bsa.blocks(grid).k_blocks.volume
    most = selector.most(key_blocks)
    return most if selector.uniform or density is None else min(most, density * key_blocks)
