"""Giving memory back between two videos, so that what is measured on one is not the leftovers of the other."""

from __future__ import annotations

import ctypes
import gc
import sys


def release_memory() -> None:
    """Free what nobody refers to, return PyTorch's cached CUDA blocks and reset its peaks.

    Also asks glibc to return the free parts of its heap, which otherwise count as resident memory of the process.
    Imports nothing: a process that has not used PyTorch has nothing of it to release.
    """
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        for device in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(device)
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
