"""Finds the device that a pipeline will run on, without importing PyTorch where possible."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from pipeline.machine.gpus import Device, gpu_of, largest_gpu, visible_gpus
from pipeline.machine.resources import read_resources

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class DeviceName:
    """Names a device that another process uses. It has the attributes of `torch.device` but does not need PyTorch."""

    type: str
    index: int | None = None

    @classmethod
    def parse(cls, text: str) -> DeviceName:
        kind, _, index = text.partition(":")
        return cls(kind, int(index) if index else None)

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"


def expected_device(device: str, count: int = 1) -> DeviceName:
    """Predict the device that the loading process will get for "auto", "cpu", "cuda" or "cuda:N".

    "auto" is the GPU with the most memory, and the CPU if there is none. count: of GPUs from this one on; "auto" is the
    first then.

    NVML answers first. If its answer leaves a doubt, PyTorch is imported and asked, which takes seconds. The prediction
    can be wrong only for "auto": when NVML sees a GPU whose driver PyTorch cannot use, or the reverse.

    Raises:
        ValueError: the device does not exist here, or not so many.
    """
    if device == "cpu" or (device == "auto" and not read_resources().gpus):
        return DeviceName("cpu")
    if (asked := re.fullmatch(r"auto|cuda(?::(\d{1,3}))?", device)) and "+cpu" not in metadata.version("torch"):
        auto = largest_gpu() if count == 1 else 0
        name = DeviceName("cuda", auto if device == "auto" else int(asked[1] or 0))
        if gpu_of(name) is not None:
            if count > 1:
                _check_count(name, count, len(visible_gpus(read_resources().gpus)))
            return name
    return DeviceName.parse(str(choose_device(device) if count == 1 else rank_devices(device, count)[0]))


def choose_device(device: str) -> torch.device:
    """Resolve "auto", "cpu", "cuda" or "cuda:N", as `expected_device` has it.

    Raises:
        ValueError: the device does not exist here.
    """
    import torch

    if device == "auto":
        number = largest_gpu()
        known = number if number < torch.cuda.device_count() else 0
        device = f"cuda:{known}" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = torch.device("meta")
    if chosen.type not in ("cpu", "cuda") or (chosen.type == "cpu" and chosen.index is not None):
        raise ValueError(f"unknown device {device!r}; use auto, cpu, cuda or cuda:N")
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(
                f"device {device!r} was asked for, but PyTorch finds no usable NVIDIA driver; "
                "install one, or use cpu or auto"
            )
        if (chosen.index or 0) >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise ValueError(f"device {device!r} does not exist; this machine has {count} GPUs, counted from 0")
        chosen = torch.device("cuda", chosen.index or 0)
    return chosen


def rank_devices(device: str, count: int) -> list[torch.device]:
    """The devices of `count` ranks that compute together: the GPUs from the chosen one on, or one CPU for all of them.

    Raises:
        ValueError: there are not so many.
    """
    import torch

    first = choose_device("cuda" if device == "auto" and count > 1 and torch.cuda.is_available() else device)
    if first.type != "cuda":
        return [first] * count
    _check_count(first, count, torch.cuda.device_count())
    return [torch.device("cuda", (first.index or 0) + rank) for rank in range(count)]


def _check_count(first: Device, count: int, there: int) -> None:
    left = there - (first.index or 0)
    if count > left:
        raise ValueError(
            f"{count} GPUs from {first} on were asked for, and this machine has {there}, counted from 0; use --gpus "
            f"{left} or fewer"
        )


def gpu_name(device: Device) -> str | None:
    """The name of a CUDA device: from PyTorch if it is loaded, else from NVML. None if NVML does not show it."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(device, torch.device):
        return torch.cuda.get_device_name(device)
    gpu = gpu_of(device)
    return None if gpu is None else gpu.name
