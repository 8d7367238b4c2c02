"""Finds the NVML GPU behind a CUDA device.

NVML numbers all GPUs by their place on the bus. CUDA numbers those that CUDA_VISIBLE_DEVICES names, from the fastest on
unless CUDA_DEVICE_ORDER is PCI_BUS_ID, as `pipeline._start` sets it.
"""

from __future__ import annotations

import os
import sys
from typing import Protocol

from pipeline.machine.nvml import GpuReading, with_uuid
from pipeline.machine.resources import read_resources


class Device(Protocol):
    """A `torch.device`, or a `DeviceName` in a process that does not compute."""

    @property
    def type(self) -> str: ...

    @property
    def index(self) -> int | None: ...


def gpu_of(device: Device) -> GpuReading | None:
    """NVML's reading of a CUDA device, by its UUID where this process uses CUDA; None where that leaves a doubt."""
    gpus, index = read_resources().gpus, device.index or 0
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        if index >= torch.cuda.device_count():
            return None
        return with_uuid(str(torch.cuda.get_device_properties(index).uuid), gpus)
    visible = visible_gpus(gpus)
    return visible[index] if index < len(visible) else None


def largest_gpu() -> int:
    """CUDA's number of the GPU with the most memory, the first of equals; 0 where NVML leaves a doubt."""
    sizes = [gpu.total or 0 for gpu in visible_gpus(read_resources().gpus)]
    return sizes.index(max(sizes)) if sizes else 0


def visible_gpus(gpus: tuple[GpuReading, ...]) -> list[GpuReading]:
    """The GPUs that CUDA sees, in the order of its numbers as documented; empty if that is uncertain."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(gpu.index) for gpu in gpus] if given is None else [name.strip() for name in given.split(",")]
    found: list[GpuReading] = []
    for name in dict.fromkeys(names) if given is None else names:
        gpu = _named(name, gpus)
        if gpu is None:  # the names behind one that is none count for nothing
            break
        found.append(gpu)
    if len({gpu.key for gpu in found}) < len(found):  # a GPU named twice is an error
        return []
    by_bus = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    if not by_bus and any(name.isdecimal() for name in names) and len({gpu.name for gpu in gpus}) > 1:
        return []
    # a process uses one slice of a divided GPU, and then no other GPU
    return [gpu for gpu in found if gpu.slice is not None][:1] or found


def _named(name: str, gpus: tuple[GpuReading, ...]) -> GpuReading | None:
    """A GPU, or the first slice of one, by its number or by the beginning of its UUID, which only one may have."""
    if name.isdecimal():
        return next((gpu for gpu in gpus if gpu.index == int(name)), None)
    if not name:
        return None
    own = [gpu for gpu in gpus if gpu.uuid.startswith(name)]
    slices = [gpu for gpu in gpus if gpu.parent.startswith(name)]
    if len(own) == 1 and not slices:
        return own[0]
    return slices[0] if not own and len({gpu.parent for gpu in slices}) == 1 else None
