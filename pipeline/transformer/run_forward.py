"""Runs the forward pass that the plan chose: the plain one of `forward.py`, or the fast one of `fast_forward.py`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from pipeline.parallel.ranks import ONE_RANK, Ranks
from pipeline.request.choose_forward import ForwardChoice
from pipeline.request.workload import Workload
from pipeline.transformer.fast_forward import fast_forward
from pipeline.transformer.forward import longcat_forward
from pipeline.transformer.kept_selections import KeptSelections
from pipeline.transformer.kv_cache import KeyValues
from pipeline.transformer.self_attention import DenseAttention, SparseAttention, attention_for


def forward_for(
    choice: ForwardChoice,
    model: Any,
    work: Workload,
    attention: DenseAttention | SparseAttention,
    cache: KeyValues | None = None,
    ranks: Ranks = ONE_RANK,
    at: Iterable[range] | None = None,
) -> Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]:
    """Return the velocity function for `denoise`, which calls it once per step. model: a loaded `FastVideoLongCat`.

    cache: of the conditioning frames of `work.cached`, from `keep_conditioning`.
    ranks: those that share the work; only the fast forward can be shared.
    at: the steps, counted from 0, that each call stands for: the last of them runs, and those before it were skipped.
        None for every one in turn.
    """
    transformer, padding = model.transformer, model.zero_text_padding
    depth, kept = len(transformer.blocks), KeptSelections(work.bsa)
    spans = (range(step, step + 1) for step in itertools.count()) if at is None else iter(at)
    given: dict[str, Any] = {"conditioning": work.conditioning, "cache": cache, "zero_text_padding": padding}

    def begin() -> int:
        """Enter the next step. Returns the number of its first layers with dense attention."""
        for step in next(spans):
            kept.begin(step)
        return 0 if work.bsa is None else work.bsa.dense_layers_at(step, depth)

    def plain(latents: Tensor, timestep: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        each = attention.layers(depth, begin(), kept)
        return longcat_forward(transformer, latents, timestep, text, mask, each, **given)

    if choice.name == "plain":
        return plain
    observe = attention.observe if isinstance(attention, SparseAttention) else None
    options: dict[str, Any] = {**given, "observe": observe, "offload": model.offload}
    options |= {"parallel": ranks.sequence(work.rows), "eight_bits": choice.eight_bits}

    def fast(latents: Tensor, timestep: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        return fast_forward(
            transformer, latents, timestep, text, mask, work.bsa, kept=kept, dense_layers=begin(), **options
        )

    # A cache is filled by one row, which ranks of every row of guidance need.
    return fast if cache is not None and not cache.filled else ranks.divide(fast, work.rows)


def keep_conditioning(
    choice: ForwardChoice,
    model: Any,
    work: Workload,
    latents: Tensor,
    text: Tensor,
    mask: Tensor | None,
    on_host: bool,
    ranks: Ranks = ONE_RANK,
) -> KeyValues:
    """Run the conditioning frames alone and keep their keys and values for all steps.

    They attend as in the steps after the first dense ones of `work.bsa`.
    latents: clean, [1, C, frames, H, W], in the model's dtype. text, mask: any, for a shape: these frames read no text.
    on_host: see `KeyValues`. ranks: as in `forward_for`; each keeps those of its heads.
    """
    cache, grid, bsa = KeyValues(on_host), work.grid._replace(t=work.conditioning), work.bsa
    if bsa is None:
        alone = replace(work, grid=grid, cached=False)
    else:
        bsa = replace(bsa, dense_steps=0)
        alone = replace(work, grid=grid, cached=False, bsa=bsa, blocks=bsa.blocks(grid))
    run = forward_for(choice, model, alone, attention_for(alone), cache, ranks)
    run(latents, latents.new_zeros(1), text[:1], None if mask is None else mask[:1])
    return cache


def warm_up(
    choice: ForwardChoice, model: Any, work: Workload, device: torch.device, ranks: Ranks = ONE_RANK
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
        k = torch.randn(shape, device=device, dtype=model.dtype)
        [attend] = attention.layers(1, 0, KeptSelections(work.bsa))
        attend(k[:, :, -work.step_grid.volume :], k, k, work.grid, work.conditioning)
        return
    size = [n * p for n, p in zip(work.grid, transformer.patch_size, strict=True)]
    latents = torch.randn(rows, transformer.in_channels, *size, device=device, dtype=model.dtype)
    channels = transformer.caption_embedder.linear_1.weight.shape[1]
    text = torch.randn(rows, 16, channels, device=device, dtype=model.dtype)
    mask = torch.ones(rows, 16, dtype=torch.long, device=device)
    first, cache = _FirstBlock(model), None
    if work.cached:
        given = latents[:1, :, : work.conditioning]
        cache = keep_conditioning(choice, first, work, given, text, mask, on_host=False, ranks=ranks)
        latents = latents[:, :, work.conditioning :]
    run = forward_for(choice, first, work, attention, cache, ranks)
    for _ in range(1 if work.bsa is None else min(2, work.bsa.select_every)):  # a step that selects, one that does not
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
