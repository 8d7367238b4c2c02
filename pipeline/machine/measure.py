"""Measures a generation: seconds of each phase, seconds of work, the load of others, and the peak of memory."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

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


class Stopwatch:
    """Times spans of work, in wall seconds and on a clock that stops while other programs run.

    On a CPU that is the CPU time of this process, summed over its threads. On CUDA both are the time between two events
    of the current stream, which can be asked for once the work has ended; marks do not wait for it.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.clock = "GPU time" if self._cuda else "CPU time"

    def mark(self) -> Any:
        """A moment, for `wall` and `work`."""
        if not self._cuda:
            return time.perf_counter(), time.process_time()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wall(self, began: Any, ended: Any) -> float:
        seconds: float = began.elapsed_time(ended) / 1000 if self._cuda else ended[0] - began[0]
        return seconds

    def work(self, began: Any, ended: Any) -> float:
        seconds: float = began.elapsed_time(ended) / 1000 if self._cuda else ended[1] - began[1]
        return seconds


class OtherPrograms:
    """Measures the share of this process's processors that other programs take, from its creation on."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._began = self._read()

    def share(self) -> float | None:
        """0 to 1; None where the system does not tell."""
        (wall, busy, own), (now, busy_now, own_now) = self._began, self._read()
        if now <= wall or busy_now <= busy:  # no time passed, or counters that stand still
            return None
        return min(1.0, max(0.0, (busy_now - busy - (own_now - own)) / ((now - wall) * self._count)))

    def _read(self) -> tuple[float, float, float]:
        each = psutil.cpu_times(percpu=True)
        mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(each))
        counted = [each[cpu] for cpu in mine if cpu < len(each)] or each
        self._count = len(counted)
        idle = ("idle", "iowait", "guest", "guest_nice")  # the guests' time is in the user's, too
        busy = sum(sum(times) - sum(getattr(times, name, 0.0) for name in idle) for times in counted)
        own = self._process.cpu_times()
        return time.perf_counter(), busy, own.user + own.system


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
