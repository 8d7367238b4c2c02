"""Measures a loaded pipeline for a second or two, so that estimates fit this machine."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

import psutil
import torch
from torch import Tensor

from bsa import BSAConfig, Grid, block_order_attention, block_sparse_attention, nested_layouts
from pipeline.checkpoint.info import CheckpointInfo
from pipeline.transformer.fast_forward import run_without_attention
from pipeline.transformer.forward import after_attention, attend_dense, before_attention, rope_table

BUDGET_SECONDS = 1.5  # for the blocks; decoding adds about as much
REPEATS = 3
# From small to large; the larger ones are left out if the smaller ones have used up the time. In one of them the usual
# 4x4x4 chunks are ragged, because its rows do not divide by 4, as at 720p and 480p.
_GRIDS = {
    "cpu": (Grid(4, 8, 8), Grid(8, 15, 16), Grid(8, 16, 16), Grid(16, 16, 16)),
    "cuda": (Grid(8, 16, 16), Grid(12, 30, 52), Grid(12, 32, 52), Grid(24, 32, 52)),
}
_SMALL = (96, 96)  # height and width of the first decoded clip; the second has the checkpoint's default size
_KEPT = BSAConfig(sparsity=0.75)


class Loaded(Protocol):
    """A loaded pipeline. `exclusive` gives access to its model while no generation runs."""

    device: torch.device
    info: CheckpointInfo

    def exclusive(self) -> AbstractContextManager[Any]: ...


@torch.no_grad()
def measure(pipeline: Loaded, budget: float = BUDGET_SECONDS) -> list[dict[str, Any]]:
    """Time parts of the model on small inputs: a block, its dense and its sparse attention, and the decoder.

    Runs in the calling thread for about twice `budget` seconds, once the pipeline is idle. It does not change the
    pipeline.

    Returns a list of points for JSON. Each is {"part": "linear" | "dense" | "sparse" | "decode", "seconds", "grid" or
    "size", and "bsa" for sparse} for one block and one row of the batch. One more is {"part": "process", "bytes"}, the
    memory that the idle process takes.
    """
    with pipeline.exclusive() as model:
        own_size = pipeline.info.defaults["height"], pipeline.info.defaults["width"]
        return _measure(model, pipeline.device, time.perf_counter() + budget, own_size)


def _measure(model: Any, device: torch.device, deadline: float, own_size: tuple[int, int]) -> list[dict[str, Any]]:
    points = [{"part": "process", "bytes": _held(device)}]
    timer = _Timer(device, deadline)
    for grid in _GRIDS.get(device.type, _GRIDS["cpu"]):
        if timer.over:
            break
        points += _measure_block(model, grid, device, timer)
    for height, width in (_SMALL, own_size):
        seconds = _measure_decoder(model, height, width, device, timer)
        points.append({"part": "decode", "size": [5, height, width], "seconds": seconds})
        # the next grid takes longer in proportion to its tokens, and runs twice
        if seconds * math.prod(own_size) / math.prod(_SMALL) > BUDGET_SECONDS:
            break
    return points


def _measure_decoder(model: Any, height: int, width: int, device: torch.device, timer: _Timer) -> float:
    latents = torch.randn(1, model.transformer.in_channels, 2, height // 8, width // 8, device=device)
    return timer(lambda: model.decode_frame(latents))


def _measure_block(model: Any, grid: Grid, device: torch.device, timer: _Timer) -> list[dict[str, Any]]:
    blocks = iter(model.transformer.blocks) if model.offload is None else model.offload.blocks(1)
    points = _measure_one(next(blocks), model, grid, device, timer)
    next(blocks, None)  # the block returns to where it was brought from
    return points


def _measure_one(block: Any, model: Any, grid: Grid, device: torch.device, timer: _Timer) -> list[dict[str, Any]]:
    heads, width = block.self_attn.num_heads, model.transformer.hidden_size
    time_width = block.adaln_linear_1.weight.shape[1]
    x = torch.randn(1, grid.volume, width, device=device, dtype=model.dtype)
    t = torch.randn(1, grid.t, time_width, device=device)
    text = torch.randn(1, 40, width, device=device, dtype=model.dtype)
    rope = rope_table(grid, width // heads, device)
    q, k, v, _, _ = before_attention(block, x, t, rope)
    if device.type == "cpu":  # where the fast forward runs
        linear = partial(run_without_attention, block, x, t[:, :1], text, rope)
        layout = nested_layouts(grid, _KEPT.chunk_q, _KEPT.chunk_k)[0]
        ordered = [part.transpose(1, 2).contiguous() for part in (q, k, v)]
        sparse = partial(block_order_attention, *ordered, layout, _KEPT)
    else:
        linear = partial(_plain_without_attention, block, x, t, text, rope)
        sparse = partial(block_sparse_attention, q, k, v, grid, _KEPT)
    at = {"grid": list(grid)}
    return [
        {"part": "linear", **at, "seconds": timer(linear)},
        {"part": "dense", **at, "seconds": timer(lambda: attend_dense(q, k, v, grid))},
        {"part": "sparse", **at, "bsa": _KEPT.to_bsa_params(), "seconds": timer(sparse)},
    ]


def _plain_without_attention(block: Any, x: Tensor, t: Tensor, text: Tensor, rope: tuple[Tensor, Tensor]) -> None:
    q, _, _, gate, ffn = before_attention(block, x, t, rope)
    after_attention(block, x, q, gate, ffn, text, None)


class _Timer:
    """Measures the smallest seconds of a few calls, after one uncounted call. Fewer calls once the time is used up.

    The smallest is used because other programs can only add to it. Finished runs show the usual load of the machine.
    """

    def __init__(self, device: torch.device, deadline: float) -> None:
        self._device, self._deadline = device, deadline

    @property
    def over(self) -> bool:
        return time.perf_counter() >= self._deadline

    def __call__(self, call: Callable[[], Any]) -> float:
        least = math.inf
        for repeat in range(1 + REPEATS):
            began = time.perf_counter()
            call()
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            if repeat:  # the first one compiles kernels and touches fresh memory
                least = min(least, time.perf_counter() - began)
                if self.over:
                    break
        return least


def _held(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process(os.getpid()).memory_info().rss
