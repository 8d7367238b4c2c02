"""Whether the native kernel can take some tensors, and whether it is faster than PyTorch here."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor

from bsa.native.attend import FEATURES, LARGEST_DIM, attend_everything, compiled, thread_pool
from bsa.native.build import NotBuilt
from bsa.native.processor import processor_flags

SWITCH = "BSA_NATIVE"  # 0 in the environment keeps to PyTorch
_OFF = f"{SWITCH}=0 turns it off"
_PROBE = 1, 2, 1024, 64  # batch, heads, tokens and channels of the attention that is timed
_ROUNDS = 7


def obstacle(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """The reason why the native kernel cannot take these tensors, [B, H, S, D] or [B, S, H, D], or None.

    Compiles the kernel if need be, which takes a few seconds once.
    """
    if q.device.type != "cpu":
        return f"the tensors are on {q.device.type}, not on the CPU"
    if os.environ.get(SWITCH) == "0":
        return _OFF
    if torch.compiler.is_compiling():
        return "torch.compile cannot look into it"
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        return "gradients are needed and its kernel is forward only"
    if q.dtype not in FEATURES:
        return f"it takes bfloat16 and float32, not {q.dtype}"
    if q.shape[-1] % 32 or not 32 <= q.shape[-1] <= LARGEST_DIM:
        return f"it takes head dims that are multiples of 32 up to {LARGEST_DIM}, not {q.shape[-1]}"
    return lacking(q.dtype) or _unbuilt(q.dtype)


def lacking(dtype: torch.dtype) -> str | None:
    """What this machine lacks for native code with numbers of a dtype, besides a compiler, or None."""
    if os.environ.get(SWITCH) == "0":
        return _OFF
    absent = [name for name in FEATURES[dtype].values() if name not in processor_flags()]
    if absent:
        return f"the processor has no {' and no '.join(absent)}"
    return None if thread_pool() else "PyTorch's threads are not those of OpenMP"


@lru_cache(maxsize=4)
def _unbuilt(dtype: torch.dtype) -> str | None:
    """Why there is no object for a dtype, or None. Compiles it if need be."""
    try:
        compiled(dtype)
    except NotBuilt as error:
        return str(error)
    return None


@lru_cache(maxsize=4)
def gain(dtype: torch.dtype, other: Callable[[Tensor, Tensor, Tensor], Tensor]) -> float:
    """CPU time of another dense attention over that of the native kernel, which there must be.

    Takes some 50 ms. Both take turns and the least of each counts, so a busy machine changes little.
    """
    with torch.inference_mode():
        q = torch.randn(_PROBE, generator=torch.Generator().manual_seed(0)).to(dtype)
        out = torch.empty_like(q)
        runs: tuple[Callable[[], object], ...] = (
            partial(other, q, q, q),
            partial(attend_everything, q, q, q, 0.125, out),
        )
        least = [float("inf")] * len(runs)
        for _ in range(_ROUNDS):
            for number, run in enumerate(runs):
                began = time.process_time()
                run()
                least[number] = min(least[number], time.process_time() - began)
    return least[0] / least[1]
