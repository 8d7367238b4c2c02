"""Wall seconds of the phases of a generation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Wall seconds of named phases. On CUDA each phase ends when its kernels have."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._began = time.perf_counter()
        self._phases: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[Callable[[], float]]:
        """Time a block; gives a function for the seconds so far."""
        began = time.perf_counter()
        yield lambda: time.perf_counter() - began
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._phases[name] = time.perf_counter() - began

    def leave_out(self, name: str, seconds: float) -> None:
        """Take seconds off a phase that has ended, and off the total."""
        self._phases[name] -= seconds
        self._began += seconds

    def seconds(self) -> dict[str, float]:
        return {**self._phases, "total": time.perf_counter() - self._began}
