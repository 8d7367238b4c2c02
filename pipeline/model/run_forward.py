"""Runs the forward pass that the plan chose: the plain one of `forward.py`, or the fast one of `fast_forward.py`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from pipeline.model.fast_forward import fast_forward
from pipeline.model.forward import longcat_forward
from pipeline.model.self_attention import DenseAttention, SparseAttention, attention_for
from pipeline.request.choose_forward import ForwardChoice
from pipeline.request.workload import Workload


def forward_for(
    choice: ForwardChoice,
    model: Any,
    work: Workload,
    attention: DenseAttention | SparseAttention,
) -> Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]:
    """Return the velocity function for `denoise`. model: a loaded `FastVideoLongCat`."""
    transformer, padding = model.transformer, model.zero_text_padding
    if choice.name == "plain":
        return partial(longcat_forward, transformer, attend=attention, zero_text_padding=padding)
    observe = attention.observe if isinstance(attention, SparseAttention) else None
    options: dict[str, Any] = {"zero_text_padding": padding, "observe": observe, "offload": model.offload}
    return partial(fast_forward, transformer, config=work.bsa, **options)


def warm_up(choice: ForwardChoice, model: Any, work: Workload, device: torch.device) -> None:
    """Run the kernels of a generation once before it is timed: Triton compiles them, and libraries make their plans."""
    transformer, rows, attention = model.transformer, work.rows, attention_for(work)
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
    run = forward_for(choice, _FirstBlock(model), work, attention)
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
