"""Runs the forward pass that the plan chose: the plain one of `forward.py`, or the fast one of `fast_forward.py`."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from pipeline.model.fast_forward import fast_forward
from pipeline.model.forward import Attend, longcat_forward
from pipeline.model.self_attention import DenseAttention, SparseAttention, attention_for
from pipeline.parallel.ranks import Ranks
from pipeline.request.choose_forward import ForwardChoice
from pipeline.request.workload import Workload


def forward_for(
    choice: ForwardChoice,
    model: Any,
    work: Workload,
    attention: DenseAttention | SparseAttention,
    ranks: Ranks = Ranks(),
) -> Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]:
    """Return the velocity function for `denoise`, which calls it once per step.

    model: a loaded `FastVideoLongCat`. ranks: those that share the work; only the fast forward can be shared.
    """
    transformer, padding = model.transformer, model.zero_text_padding
    depth, steps = len(transformer.blocks), itertools.count()

    def dense_layers() -> int:
        return 0 if work.bsa is None else work.bsa.dense_layers_at(next(steps), depth)

    def plain(latents: Tensor, timestep: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        if isinstance(attention, DenseAttention):
            each: list[Attend] = [attention] * depth
        else:
            dense = dense_layers()
            each = [*[attention.dense] * dense, *[attention] * (depth - dense)]
        return longcat_forward(transformer, latents, timestep, text, mask, each, zero_text_padding=padding)

    if choice.name == "plain":
        return plain
    observe = attention.observe if isinstance(attention, SparseAttention) else None
    options: dict[str, Any] = {"zero_text_padding": padding, "observe": observe, "offload": model.offload}
    options["parallel"] = ranks.sequence(work.rows)

    def fast(latents: Tensor, timestep: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        return fast_forward(
            transformer, latents, timestep, text, mask, work.bsa, dense_layers=dense_layers(), **options
        )

    return ranks.divide(fast, work.rows)


def warm_up(
    choice: ForwardChoice, model: Any, work: Workload, device: torch.device, ranks: Ranks = Ranks()
) -> None:
    """Run what is new about a generation once: Triton compiles it, libraries make their plans."""
    transformer, rows = model.transformer, work.rows
    if work.bsa is not None and (work.bsa.dense_steps or work.bsa.dense_layers):
        # both kinds of layers, each in a workload of its own
        warm_up(choice, model, replace(work, bsa=None), device, ranks)
        work = replace(work, bsa=replace(work.bsa, dense_steps=0, dense_layers=0))
    attention = attention_for(work)
    if choice.name == "plain":
        heads = transformer.blocks[0].self_attn.num_heads
        shape = (rows, heads, work.grid.volume, transformer.hidden_size // heads)
        q = torch.randn(shape, device=device, dtype=model.dtype)
        attention(q, q, q, work.grid)
        return
    size = [n * p for n, p in zip(work.grid, transformer.patch_size, strict=True)]
    latents = torch.randn(rows, transformer.in_channels, *size, device=device, dtype=model.dtype)
    channels = transformer.caption_embedder.linear_1.weight.shape[1]
    text = torch.randn(rows, 16, channels, device=device, dtype=model.dtype)
    mask = torch.ones(rows, 16, dtype=torch.long, device=device)
    run = forward_for(choice, _FirstBlock(model), work, attention, ranks)
    run(latents, torch.full((rows,), 500.0, device=device), text, mask)


class _FirstBlock:
    """A loaded model reduced to the first block of its transformer. All blocks run the same kernels."""

    def __init__(self, model: Any) -> None:
        self.transformer = _OneBlock(model.transformer)
        self.zero_text_padding = model.zero_text_padding
        offload = model.offload
        self.offload = None if offload is None else SimpleNamespace(blocks=partial(offload.blocks, 1))


class _OneBlock:
    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer
        self.blocks = transformer.blocks[:1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transformer, name)
