"""Which forward runs a generation: the plain one of `forward.py`, or the one for large videos, `fast_forward.py`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bsa.variants import measured_as
from pipeline.model.attention import DenseAttention, SparseAttention
from pipeline.model.fast_forward import fast_forward
from pipeline.model.forward import longcat_forward
from pipeline.model.fp8 import check_device
from pipeline.request.video import VideoRequest
from pipeline.request.weights import AS_STORED, Weights, mixed_chunks

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


def check_weights(weights: Weights, forward: str, device: torch.device) -> None:
    """Raises ValueError where such weights cannot run: with the plain forward, or in 8 bits on a GPU without them."""
    weights.check_forward(checked_forward(forward))
    if weights.quantization is not None and device.type == "cuda":
        check_device(device)


def choose_forward(
    asked: str, request: VideoRequest, device: torch.device, weights: Weights = AS_STORED
) -> ForwardChoice:
    """ "auto" takes the fast forward where the weights need it and on GPUs that bsa/tuned.json has measurements of, and
    the plain one elsewhere.

    A dense and a sparse video get the same one, so that only the attention differs between them; but not where chunks
    of queries and keys differ, which only the plain forward takes: ask for "plain" to compare such videos.

    Raises:
        ValueError: the fast forward was asked for, or the weights need it, and it cannot run this request.
    """
    weights.check_forward(asked)
    weights.check(request)
    obstacle = mixed_chunks(request)
    if asked == "fast" and obstacle:
        raise ValueError(f"the fast forward cannot run this request because {obstacle}; use the plain one, or auto")
    if asked != "auto":
        return ForwardChoice(asked, "it was asked for")
    if weights:
        return ForwardChoice("fast", f"{weights} needs it")
    if device.type != "cuda":
        return ForwardChoice("plain", f"the device is {device.type}")
    gpu = torch.cuda.get_device_name(device)
    measured = measured_as(gpu)
    if measured is None:
        return ForwardChoice("plain", f"the fast one has not been measured on {gpu}")
    if obstacle:
        return ForwardChoice("plain", obstacle)
    return ForwardChoice("fast", f"it was measured on {measured}" + ("" if measured == gpu else ", the same chip"))


def forward_for(
    choice: ForwardChoice,
    model: Any,
    request: VideoRequest,
    attention: DenseAttention | SparseAttention,
) -> Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]:
    """The velocity of `denoise`, for a loaded model (`FastVideoLongCat`)."""
    transformer, padding = model.transformer, model.zero_text_padding
    if choice.name == "plain":
        return partial(longcat_forward, transformer, attend=attention, zero_text_padding=padding)
    active, _ = request.bsa_status()
    config = request.bsa if active else None
    observe = attention.observe if active and isinstance(attention, SparseAttention) else None
    return partial(
        fast_forward, transformer, config=config, zero_text_padding=padding, observe=observe, offload=model.offload
    )


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
        offload = model.offload
        self.offload = None if offload is None else SimpleNamespace(blocks=partial(offload.blocks, 1))


class _OneBlock:
    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer
        self.blocks = transformer.blocks[:1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transformer, name)
