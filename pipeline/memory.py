"""Giving memory back between two videos, and telling when there was not enough of it."""

from __future__ import annotations

import ctypes
import gc
import re
import sys

_NO_MEMORY = re.compile("out of memory|can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE)


def release_memory() -> None:
    """Free what nobody refers to, return PyTorch's cached CUDA blocks and reset its peaks.

    Between two videos: what is measured on one must not be the leftovers of the other.
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


def out_of_memory(error: Exception) -> bool:
    """Whether the error means too little memory, of the host or of a GPU; PyTorch has several ways to say it."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error))))
    )
