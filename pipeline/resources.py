"""Memory and load of the GPUs (through NVML) and of the host; and the peak of one generation."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import psutil
import pynvml
import torch

SAMPLE_SECONDS = 0.02


@dataclass(frozen=True)
class GpuReading:
    """One GPU. used, total: bytes; utilization: percent of the last sample period, None if not reported."""

    index: int
    name: str
    used: int
    total: int
    utilization: int | None


@dataclass(frozen=True)
class Resources:
    """A reading of the machine. Bytes; cpu_percent over all cores since the last reading.

    note: why `gpus` is empty, or "" when it is not.
    """

    gpus: tuple[GpuReading, ...]
    process_rss: int
    host_used: int
    host_total: int
    cpu_percent: float
    note: str


def read_resources() -> Resources:
    """Read GPUs and host now. Never raises: without an NVIDIA driver `gpus` is empty and `note` says why."""
    gpus, note = _read_gpus()
    host = psutil.virtual_memory()
    return Resources(
        gpus=gpus,
        process_rss=psutil.Process().memory_info().rss,
        host_used=host.total - host.available,
        host_total=host.total,
        cpu_percent=psutil.cpu_percent(),
        note=note,
    )


def _read_gpus() -> tuple[tuple[GpuReading, ...], str]:
    try:
        # Starting NVML again and again is cheap (it counts), and finds a driver that came up later.
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return (), f"no GPU reading, NVML says: {error}"
    try:
        gpus = tuple(_read_gpu(index) for index in range(pynvml.nvmlDeviceGetCount()))
        return gpus, "" if gpus else "no GPU reading, the NVIDIA driver reports no GPU"
    except pynvml.NVMLError as error:
        return (), f"no GPU reading, NVML says: {error}"
    finally:
        pynvml.nvmlShutdown()


def _read_gpu(index: int) -> GpuReading:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    try:
        utilization = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu
    except pynvml.NVMLError:  # not available inside MIG slices and some virtual machines
        utilization = None
    return GpuReading(index, _text(pynvml.nvmlDeviceGetName(handle)), memory.used, memory.total, utilization)


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def check_memory(frames: int, height: int, width: int, tokens: int, hidden: int, device: torch.device) -> None:
    """Refuse a video that cannot fit, before the operating system ends the whole process for it.

    Counts only what certainly exists at one time, so a video that passes may still be too large. On the CPU: the
    decoded fp32 pixels and their normalised copy; five fp32 tensors of tokens x hidden (input, queries, keys, values,
    result). On CUDA the host only holds the finished 8-bit frames, and too little GPU memory raises in PyTorch.

    Raises:
        ValueError: more bytes than the host has available.
    """
    pixels = 3 * frames * height * width
    needed = pixels if device.type == "cuda" else max(2 * 4 * pixels, 5 * 4 * tokens * hidden)
    available = psutil.virtual_memory().available
    if needed > available:
        raise ValueError(
            f"{width}x{height} with {frames} frames needs at least {needed / 2**30:,.1f} GiB of memory and "
            f"{available / 2**30:,.1f} GiB are available; use a smaller size or fewer frames"
        )


class PeakMemory:
    """Context manager that measures the peak of what runs inside it.

    On CUDA the allocator's own peak; elsewhere the largest resident set of the process, sampled by a thread.
    `bytes` and `label` are final after the block.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.label = "CUDA allocated" if device.type == "cuda" else "process RSS"
        self.bytes = 0
        self._done = threading.Event()

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._thread = threading.Thread(target=self._sample, name="peak-memory", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device)
        else:
            self._done.set()
            self._thread.join()

    def _sample(self) -> None:
        process = psutil.Process()
        while True:
            self.bytes = max(self.bytes, process.memory_info().rss)
            if self._done.wait(SAMPLE_SECONDS):
                return
