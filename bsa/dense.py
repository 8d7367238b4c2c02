"""Dense attention: what block sparse attention is compared with, and what a model's first layers and steps may use."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bsa.backends import resolve_backend
from bsa.products import torch_attention


def full_attention(q: Tensor, k: Tensor, v: Tensor, *, backend: str = "auto") -> Tensor:
    """`F.scaled_dot_product_attention` without a mask, [B, H, Q, D] over [B, H, S, D].

    backend: "native" (CPUs with AVX-512 and a C compiler, forward only), "torch" (any device, differentiable; in
        bfloat16 on a CPU two batched products), or "auto", which picks one of them and logs which and why.

    Raises ValueError for a backend that there is not, or one that cannot take these tensors.
    """
    if q.is_cuda and backend == "auto":
        return torch_attention(q, k, v)
    backend = resolve_backend(backend, q, k, v, known=("auto", "native", "torch"))
    if backend == "torch":
        return torch_attention(q, k, v)
    from bsa.native.attend import attend_everything

    out = torch.empty(q.shape, dtype=q.dtype)
    attend_everything(q, k, v, 1 / math.sqrt(q.shape[-1]), out)
    return out
