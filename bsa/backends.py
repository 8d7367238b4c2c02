"""Which implementation computes: a named one or none, and for "auto" the fastest that can take the tensors."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from bsa.products import torch_attention

logger = logging.getLogger("bsa")

BACKENDS = ("auto", "triton", "native", "torch", "reference")
_announced: set[str] = set()


def resolve_backend(backend: str, q: Tensor, k: Tensor, v: Tensor, known: Sequence[str] = BACKENDS) -> str:
    """The backend to run. "auto" goes through "triton", "native" and "torch", of which the first that can and gains
    something runs, and logs which and why.

    Raises ValueError if a named one is not among those known, or cannot take these tensors.
    """
    if backend not in known:
        raise ValueError(f"unknown backend {backend!r}; choose one of {', '.join(known)}")
    if backend in ("torch", "reference"):
        return backend
    if backend != "auto":
        obstacle = _OBSTACLES[backend](q, k, v)
        if obstacle:
            raise ValueError(f"the {backend} backend cannot run because {obstacle}; use backend='torch' or 'auto'")
        return backend
    choice, reason = _fastest(q, k, v, known)
    kind = "block sparse" if "triton" in known else "dense"
    message = f"{kind} attention runs on the {choice} backend because {reason}"
    if message not in _announced:
        _announced.add(message)
        logger.info(message)
    return choice


def _fastest(q: Tensor, k: Tensor, v: Tensor, known: Sequence[str]) -> tuple[str, str]:
    """The choice of "auto" and its reason, as the end of a sentence."""
    without_triton = _triton_obstacle(q, k, v) if "triton" in known else f"the tensors are on {q.device.type}"
    if without_triton is None:
        return "triton", "the tensors are on CUDA"
    if q.device.type != "cpu":
        return "torch", without_triton
    obstacle = _native_obstacle(q, k, v)
    if obstacle:
        return "torch", f"{without_triton}, and the native kernel cannot run because {obstacle}"
    from bsa.native.choice import gain

    times, dtype = gain(q.dtype, torch_attention), str(q.dtype).removeprefix("torch.")
    said = f"on this CPU the native kernel takes {1 / times:.2f} times as long as PyTorch in {dtype}"
    return "native" if times > 1 else "torch", said


def _triton_obstacle(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """The reason why the Triton kernel cannot take these tensors, or None."""
    if not q.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the tensors are on {q.device.type}, not on CUDA"
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        return "gradients are needed and its kernel is forward only"
    if q.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return f"it takes bfloat16, float16 and float32, not {q.dtype}"
    if not 16 <= q.shape[-1] <= 256:
        return f"it takes head dims from 16 to 256, not {q.shape[-1]}"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    return None


def _native_obstacle(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """The reason why the kernel for CPUs cannot take these tensors, or None. May compile it."""
    from bsa.native.choice import obstacle

    return obstacle(q, k, v)


_OBSTACLES = {"triton": _triton_obstacle, "native": _native_obstacle}
