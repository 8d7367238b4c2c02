"""Which forward runs a generation: the plain one of `forward.py`, or the one for large videos, `fast_forward.py`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bsa import BlockLayout
from bsa.variants import TUNED

from .attention import DenseAttention, SparseAttention
from .fast_forward import fast_forward
from .forward import longcat_forward
from .request import VideoRequest

FORWARDS = ("auto", "plain", "fast")


class ForwardChoice(NamedTuple):
    """name: "plain" or "fast"; reason: why, as the end of a sentence."""

    name: str
    reason: str


def checked_forward(name: str) -> str:
    """The name; ValueError unless it is one of `FORWARDS`."""
    if name not in FORWARDS:
        raise ValueError(f"unknown forward {name!r}; choose one of {', '.join(FORWARDS)}")
    return name


def choose_forward(asked: str, request: VideoRequest, device: torch.device) -> ForwardChoice:
    """ "auto" takes the fast forward on GPUs that bsa/tuned.json has measurements of, and the plain one elsewhere.

    A dense and a sparse video get the same one, so that only the attention differs between them; but not where chunks
    of queries and keys differ, which only the plain forward takes: ask for "plain" to compare such videos.

    Raises:
        ValueError: the fast forward was asked for and cannot run this request.
    """
    obstacle = _obstacle(request)
    if asked == "fast" and obstacle:
        raise ValueError(f"the fast forward cannot run this request because {obstacle}; use the plain one, or auto")
    if asked != "auto":
        return ForwardChoice(asked, "it was asked for")
    if device.type != "cuda":
        return ForwardChoice("plain", f"the device is {device.type}")
    gpu = torch.cuda.get_device_name(device)
    if gpu not in json.loads(TUNED.read_text(encoding="utf-8")):
        return ForwardChoice("plain", f"the fast one has not been measured on {gpu}")
    if obstacle:
        return ForwardChoice("plain", obstacle)
    return ForwardChoice("fast", f"it was measured on {gpu}")


def _obstacle(request: VideoRequest) -> str | None:
    active, _ = request.bsa_status()
    if not active:
        return None
    layouts = [BlockLayout(request.grid, chunk) for chunk in (request.bsa.chunk_q, request.bsa.chunk_k)]
    if layouts[0] == layouts[1]:
        return None
    return f"queries and keys have chunks of {request.bsa.chunk_q} and {request.bsa.chunk_k} tokens"


def forward_for(
    choice: ForwardChoice,
    model: Any,
    request: VideoRequest,
    attention: DenseAttention | SparseAttention,
) -> Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]:
    """The velocity of `denoise`, for a loaded model (`FastVideoLongCat`)."""
    transformer, padding = model.transformer, model.zero_text_padding
    if choice.name == "plain":
        return lambda *inputs: longcat_forward(transformer, *inputs, attention, zero_text_padding=padding)
    active, _ = request.bsa_status()
    config = request.bsa if active else None
    observe = attention.observe if active else None
    return lambda *inputs: fast_forward(transformer, *inputs, config, zero_text_padding=padding, observe=observe)


def warm_up(choice: ForwardChoice, model: Any, request: VideoRequest, attention: Any, device: torch.device) -> None:
    """Run what is new about a request once: Triton compiles it, libraries make their plans.

    attention: one that nothing else counts with.
    """
    transformer = model.transformer
    rows = 2 if request.guidance_scale > 1 else 1
    if choice.name == "plain":
        heads = transformer.blocks[0].self_attn.num_heads
        shape = (rows, heads, request.grid.volume, transformer.hidden_size // heads)
        q = torch.randn(shape, device=device, dtype=model.dtype)
        attention(q, q, q, request.grid)
        return
    size = [n * p for n, p in zip(request.grid, transformer.patch_size, strict=True)]
    latents = torch.randn(rows, transformer.in_channels, *size, device=device, dtype=model.dtype)
    channels = transformer.caption_embedder.linear_1.weight.shape[1]
    text = torch.randn(rows, 16, channels, device=device, dtype=model.dtype)
    mask = torch.ones(rows, 16, dtype=torch.long, device=device)
    run = forward_for(choice, _FirstBlock(model), request, attention)
    run(latents, torch.full((rows,), 500.0, device=device), text, mask)


class _FirstBlock:
    """A loaded model whose transformer has one block: all of them run the same kernels."""

    def __init__(self, model: Any) -> None:
        self.transformer = _OneBlock(model.transformer)
        self.zero_text_padding = model.zero_text_padding


class _OneBlock:
    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer
        self.blocks = transformer.blocks[:1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transformer, name)
