"""Counts the operations of a generation from the checkpoint's configuration and the request.

`pipeline.estimate.estimator` turns these counts into seconds with rates measured on the machine. The rates here only
compare the parts with each other. They bridge the gap between a first measurement and a request of another size.
"""

from __future__ import annotations

from typing import NamedTuple

from bsa import BSAConfig, Grid
from pipeline.checkpoint.shape import ModelShape
from pipeline.machine.gpus import Device
from pipeline.request.load_options import AS_STORED, LoadOptions

TEXT_TOKENS = 40  # a prompt of a sentence or two; cross-attention is too small a part to need the exact number


class Rates(NamedTuple):
    """The speed of the parts in operations per second, and further costs in operations.

    layout: operations per element moved into blocks and back. select: operations per pair of pooled blocks.
    cells: operations per pair of cells, if the selection compares them.
    ragged: factor on all of sparse attention if the chunks do not divide the grid.
    launch: seconds per layer, whatever the size.
    exchange: bytes per second that a rank sends to others.
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
    exchange: float


# Measured once with benchmarks/, on two CPU threads and on one H200 in bfloat16, the exchange on four. Only the ratios
# matter. The CPU's exchange, through shared memory, is assumed.
_RATES = {
    "cpu": Rates(73e9, 155e9, 115e9, 136e9, 530, 500, 250, 1.6, 1.5e-3, 1e9),
    "cpu bf16": Rates(300e9, 360e9, 340e9, 420e9, 530, 500, 250, 1.0, 1.5e-3, 1e9),  # with native code
    "cuda": Rates(350e12, 600e12, 400e12, 50e12, 4000, 20000, 280, 1.3, 1e-3, 160e9),
}


def reference_rates(device: Device, weights: LoadOptions = AS_STORED) -> Rates:
    """weights: their precision counts on a CPU, and "auto" is taken for fp32 there."""
    if device.type != "cuda" and weights.precision == "bf16":
        return _RATES["cpu bf16"]
    return _RATES.get(device.type, _RATES["cpu"])


def linear_seconds(shape: ModelShape, tokens: int, rates: Rates) -> float:
    """Seconds of one block without its self-attention, for one row of the batch, at the reference rates."""
    weights = 6 * shape.hidden**2 + 3 * shape.hidden * shape.ffn
    return (2 * tokens * weights + 4 * tokens * TEXT_TOKENS * shape.hidden) / rates.linear + rates.launch


def dense_seconds(shape: ModelShape, tokens: int, rates: Rates, keys: int | None = None) -> float:
    """Seconds of the dense self-attention of one block, for one row of the batch. keys: where they are not the tokens'
    own."""
    return 4 * tokens * (tokens if keys is None else keys) * shape.hidden / rates.dense


def sparse_seconds(
    shape: ModelShape,
    grid: Grid,
    bsa: BSAConfig,
    kept: float,
    rates: Rates,
    conditioning: int = 0,
    selects: float = 1.0,
) -> float:
    """Seconds of the sparse self-attention of one block, for one row of the batch: layout, selection and attention.

    kept: key blocks per query block. A smaller block at the edge costs as much as a full one, because it is padded to
    its chunk.
    conditioning: first frames of the grid, whose queries are not counted.
    selects: share of the steps that select blocks.
    """
    plan = bsa.blocks(grid, conditioning)
    chunk_k = grid.clip(bsa.chunk_k, conditioning).volume
    pairs = 4 * grid._replace(t=grid.t - conditioning).volume * kept * chunk_k * shape.hidden
    layout = rates.layout * grid.volume * shape.hidden
    select = selects * shape.heads * (rates.select * plan.work.block_pairs + rates.cells * plan.work.cell_pairs)
    return (pairs + layout + select) / rates.sparse * (rates.ragged if plan.ragged else 1)


def exchange_seconds(shape: ModelShape, tokens: int, size: int, ranks: int, rates: Rates) -> float:
    """Seconds in which one block sends queries, keys, values and results of one row between ranks that share it.

    size: bytes of a number.
    """
    return 4 * tokens * shape.hidden * size * (ranks - 1) / ranks**2 / rates.exchange


def decode_seconds(shape: ModelShape, frames: int, height: int, width: int, rates: Rates) -> float:
    """Seconds of the VAE's decoder. Its convolutions take about 800 * decoder_width^2 operations per position."""
    positions = frames * height * width / shape.decoder_patch**2
    return positions * 800 * shape.decoder_width**2 / rates.decode


def kept_blocks(bsa: BSAConfig, grid: Grid, density: float | None = None, conditioning: int = 0) -> float:
    """Number of key blocks kept per query block.

    If a cdf threshold decides, it follows from a measured density. Without one it is the upper bound: the best blocks
    always hold at least their share of the mass.
    """
    selector, key_blocks = bsa.selector, bsa.blocks(grid, conditioning).k_blocks.volume
    most = selector.most(key_blocks)
    return most if selector.uniform or density is None else min(most, density * key_blocks)
