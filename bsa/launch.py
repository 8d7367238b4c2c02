"""Where a Triton kernel is launched."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def on_device(x: Tensor) -> AbstractContextManager:
    """Triton launches on the current GPU, which need not be the tensor's. The interpreter's tensors are on the CPU."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
