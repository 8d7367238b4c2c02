"""How much memory a device has left, and the refusal of what needs more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from .request import LATENT_FRAMES, TOKEN_PIXELS, VideoRequest

# Where a container's limit and use are told: cgroup 2, then cgroup 1.
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)


def available_memory(device: torch.device) -> int:
    """Bytes that a new allocation could have: of the GPU, or of the host or the container this runs in."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min([psutil.virtual_memory().available, *filter(None, map(_container_room, _CGROUPS))])


def held_memory(device: torch.device, pid: int | None = None) -> int:
    """Bytes that a process holds of the device's memory and that a generation in it can use again.

    pid: None for this process. Of another one only the host's memory is known here; 0 for what is not.
    """
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device) if pid is None else 0
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return 0


def _container_room(files: tuple[str, str, str]) -> int | None:
    try:
        limit, used, statistics = (Path(file).read_text().strip() for file in files)
        if not limit.isdecimal() or int(limit) > 2**60:  # "max", or cgroup 1's way to say so
            return None
        cached = [int(line.split()[1]) for line in statistics.splitlines() if line.startswith("inactive_file ")]
        return max(1, int(limit) - int(used) + sum(cached))
    except (OSError, ValueError, IndexError):
        return None


def refuse(request: VideoRequest, needed: Callable[[VideoRequest], int], available: int, device: torch.device) -> None:
    """Raise the ValueError that says what `request` needs, what there is, and what would fit."""
    what = "GPU memory" if device.type == "cuda" else "memory"
    size = f"{request.width}x{request.height} with {request.num_frames} frames"
    raise ValueError(
        f"{size} needs about {_gib(needed(request))} of {what} and {_gib(available)} are available; "
        f"{nearest_fit(request, needed, available)}"
    )


def nearest_fit(request: VideoRequest, needed: Callable[[VideoRequest], int], available: int) -> str:
    """The most frames at this size, and the largest size of this shape at these frames, that fit."""

    def fits(**changes: int) -> bool:
        return needed(replace(request, **changes)) <= available

    ways = []
    frames = _largest(lambda n: fits(num_frames=LATENT_FRAMES * n + 1), (request.num_frames - 1) // LATENT_FRAMES)
    if frames is not None:
        ways.append(f"{LATENT_FRAMES * frames + 1} frames at this size")

    def scaled(rows: int) -> dict[str, int]:
        columns = max(1, round(rows * request.width / request.height))
        return {"height": rows * TOKEN_PIXELS, "width": columns * TOKEN_PIXELS}

    rows = _largest(lambda less: fits(**scaled(less + 1)), request.height // TOKEN_PIXELS - 1)
    if rows is not None:
        size = scaled(rows + 1)
        ways.append(f"{size['width']}x{size['height']} with all {request.num_frames} frames")
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


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
