"""Returns memory to the system between videos, reads how much there is, and recognises errors for lack of it."""

from __future__ import annotations

import ctypes
import gc
import importlib
import re
import sys
from pathlib import Path

import psutil

from pipeline.machine.gpus import Device, gpu_of

_NO_MEMORY = re.compile("out of memory|can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE)


def release_memory() -> None:
    """Collect garbage, return PyTorch's cached CUDA blocks and reset its peaks.

    Runs between two videos, so that leftovers of the first are not measured on the second. It also asks glibc to return
    the free parts of its heap, which would otherwise count as resident memory of the process. It does not import
    PyTorch: a process that has not used it has nothing to release.
    """
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        for device in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(device)
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl does not have it
        if trim is not None:
            trim(0)


def out_of_memory(error: Exception) -> bool:
    """Whether an error reports that the host or a GPU ran out of memory. PyTorch reports this in several ways."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error))))
    )


# Files with a container's memory limit and use: cgroup 2, then cgroup 1.
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)


def available_memory(device: Device) -> int:
    """Bytes that are free for a new allocation: on the GPU, or on the host within the container's limit.

    A process that does not use the GPU yet asks NVML, because PyTorch would take some of the memory in order to answer.
    """
    if device.type != "cuda":
        return min([psutil.virtual_memory().available, *filter(None, map(_container_available, _CGROUPS))])
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        gpu = gpu_of(device)
        if gpu is not None and gpu.total is not None and gpu.used is not None:
            return gpu.total - gpu.used - (gpu.reserved or 0)
        torch = importlib.import_module("torch")
    return torch.cuda.mem_get_info(torch.device("cuda", device.index or 0))[0]


def total_memory(device: Device) -> int:
    """Size of the device's memory in bytes, or 0 for a GPU that NVML does not show."""
    if device.type != "cuda":
        return psutil.virtual_memory().total
    gpu = gpu_of(device)
    return gpu.total if gpu is not None and gpu.total is not None else 0


def held_memory(device: Device, pid: int | None = None) -> int:
    """Bytes of the device's memory that a process holds and that its next generation can reuse.

    pid: None for this process. The GPU memory of another process cannot be read here and counts as 0.
    """
    if device.type == "cuda":
        if pid is not None:
            return 0
        import torch

        return torch.cuda.memory_reserved(torch.device("cuda", device.index or 0))
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.Error:  # it has ended
        return 0


def _container_available(files: tuple[str, str, str]) -> int | None:
    try:
        limit, used, statistics = (Path(file).read_text().strip() for file in files)
        if not limit.isdecimal() or int(limit) > 2**60:  # "max", or the huge number that cgroup 1 writes instead
            return None
        cached = [int(line.split()[1]) for line in statistics.splitlines() if line.startswith("inactive_file ")]
        return max(1, int(limit) - int(used) + sum(cached))
    except (OSError, ValueError, IndexError):
        return None
