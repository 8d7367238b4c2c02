"""How much memory a device has left, and the refusal of what needs more."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import psutil

from pipeline.request import LATENT_FRAMES, TOKEN_PIXELS, VideoRequest
from pipeline.resources import GpuReading, read_resources
from pipeline.weights import Weights

# Where a container's limit and use are told: cgroup 2, then cgroup 1.
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)


class Device(Protocol):
    """A `torch.device`, or what stands for one in a process that does not compute."""

    type: str
    index: int | None


def available_memory(device: Device) -> int:
    """Bytes that a new allocation could have: of the GPU, or of the host or the container this runs in.

    A process that has not begun to use the GPU asks NVML, because PyTorch would claim some of the memory to answer.
    """
    if device.type != "cuda":
        return min([psutil.virtual_memory().available, *filter(None, map(_container_room, _CGROUPS))])
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        gpu = gpu_of(device)
        if gpu is not None and gpu.total is not None and gpu.used is not None:
            return gpu.total - gpu.used - (gpu.reserved or 0)
        import torch
    return torch.cuda.mem_get_info(torch.device("cuda", device.index or 0))[0]


def total_memory(device: Device) -> int:
    """All bytes of the device's memory; 0 for a GPU that NVML does not show."""
    if device.type != "cuda":
        return psutil.virtual_memory().total
    gpu = gpu_of(device)
    return gpu.total if gpu is not None and gpu.total is not None else 0


def held_memory(device: Device, pid: int | None = None) -> int:
    """Bytes of the device's memory that a process holds and that its next generation can use again.

    pid: None for this process; of another one's GPU memory nothing is known here, and 0 is returned.
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


def gpu_of(device: Device) -> GpuReading | None:
    """NVML's reading of a CUDA device, or None: CUDA numbers only the GPUs that CUDA_VISIBLE_DEVICES names."""
    gpus, index = read_resources().gpus, device.index or 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return gpus[index] if index < len(gpus) else None
    names = [name.strip() for name in visible.split(",")]
    if index >= len(names):
        return None
    return next(
        (gpu for gpu in gpus if names[index] == str(gpu.index) or (names[index] and gpu.uuid.startswith(names[index]))),
        None,
    )


def _container_room(files: tuple[str, str, str]) -> int | None:
    try:
        limit, used, statistics = (Path(file).read_text().strip() for file in files)
        if not limit.isdecimal() or int(limit) > 2**60:  # "max", or cgroup 1's way to say so
            return None
        cached = [int(line.split()[1]) for line in statistics.splitlines() if line.startswith("inactive_file ")]
        return max(1, int(limit) - int(used) + sum(cached))
    except (OSError, ValueError, IndexError):
        return None


def refuse(
    request: VideoRequest,
    needed: Callable[[VideoRequest], int],
    available: int,
    device: Device,
    way: Weights | None = None,
) -> None:
    """Raise the ValueError that says what `request` needs, what there is, and what would fit.

    way: how the model would have to be loaded for the request as it is.
    """
    what = "GPU memory" if device.type == "cuda" else "memory"
    size = f"{request.width}x{request.height} with {_frames(request.num_frames)}"
    raise ValueError(
        f"{size} needs about {_gib(needed(request))} of {what} and {_gib(available)} are available; "
        + nearest_fit(request, needed, available)
        + ("" if way is None else f"; it fits as it is with {way}")
    )


def nearest_fit(request: VideoRequest, needed: Callable[[VideoRequest], int], available: int) -> str:
    """The most frames at this size, and the largest size of this shape at these frames, that fit."""

    def fits(**changes: int) -> bool:
        return needed(replace(request, **changes)) <= available

    ways = []
    frames = _largest(lambda n: fits(num_frames=LATENT_FRAMES * n + 1), (request.num_frames - 1) // LATENT_FRAMES)
    if frames is not None:
        ways.append(f"{_frames(LATENT_FRAMES * frames + 1)} at this size")

    def scaled(rows: int) -> dict[str, int]:
        columns = max(1, round(rows * request.width / request.height))
        return {"height": rows * TOKEN_PIXELS, "width": columns * TOKEN_PIXELS}

    rows = _largest(lambda less: fits(**scaled(less + 1)), request.height // TOKEN_PIXELS - 1)
    if rows is not None:
        size = scaled(rows + 1)
        number = request.num_frames
        ways.append(f"{size['width']}x{size['height']} with {'all ' if number > 1 else ''}{_frames(number)}")
    if not ways:
        return "no size fits; free some memory, or use a smaller checkpoint"
    return f"what fits: {' or '.join(ways)}"


def _largest(fits: Callable[[int], bool], below: int) -> int | None:
    """The largest number from 0 to under `below` that fits, given that smaller ones fit more easily; or None."""
    low, high = -1, below
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return None if low < 0 else low


def _frames(number: int) -> str:
    return "1 frame" if number == 1 else f"{number} frames"


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
