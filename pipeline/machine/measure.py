"""Measures a generation: seconds of each phase, and the peak of memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import torch


class Clock:
    """Measures wall seconds of named phases. On CUDA a phase ends when its kernels have finished."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._began = time.perf_counter()
        self._phases: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[Callable[[], float]]:
        """Time a block. Yields a function that returns the seconds so far."""
        began = time.perf_counter()
        yield lambda: time.perf_counter() - began
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._phases[name] = time.perf_counter() - began

    def leave_out(self, name: str, seconds: float) -> None:
        """Subtract seconds from a finished phase and from the total."""
        self._phases[name] -= seconds
        self._began += seconds

    def seconds(self) -> dict[str, float]:
        return {**self._phases, "total": time.perf_counter() - self._began}


SAMPLE_SECONDS = 0.02


class PeakMemory:
    """Context manager that measures the peak of memory within its block.

    On CUDA this is the peak that PyTorch's allocator reports. Elsewhere a thread samples the resident set of the
    process. `bytes` and `label` are final after the block.
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
