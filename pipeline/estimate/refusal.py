"""Refuses models and videos that cannot fit into memory, and names the nearest size, length or option that would."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pipeline.checkpoint.shape import ModelShape
from pipeline.estimate import footprint
from pipeline.machine.device import DeviceName
from pipeline.machine.gpus import Device
from pipeline.machine.memory import available_memory
from pipeline.request.load_options import LoadOptions
from pipeline.request.start import LATENT_FRAMES
from pipeline.request.video import TOKEN_PIXELS, VideoRequest
from pipeline.weights.precision import choose_precision

_WORDS = {"bf16": "bfloat16", "fp32": "fp32"}


def refuse(
    request: VideoRequest,
    needed: Callable[[VideoRequest], int],
    available: int,
    device: Device,
    smaller: LoadOptions | None = None,
) -> None:
    """Raise the ValueError that says how much `request` needs, how much is available, and what would fit.

    needed: returns the bytes that a request needs. available: in bytes.
    smaller: load options with which the request would fit unchanged, if there are any.
    """
    what = "GPU memory" if device.type == "cuda" else "memory"
    size = f"{request.width}x{request.height} with {_frames(request.num_frames)}"
    raise ValueError(
        f"{size} needs about {_gib(needed(request))} of {what} and {_gib(available)} are available; "
        + nearest_fit(request, needed, available)
        + ("" if smaller is None else f"; it fits as it is with {smaller}")
    )


def nearest_fit(request: VideoRequest, needed: Callable[[VideoRequest], int], available: int) -> str:
    """Words for what would fit: the most frames at this size, and the largest size of this shape with these frames."""

    def fits(**changes: Any) -> bool:
        return needed(replace(request, **changes)) <= available

    remedies = []
    if request.start.clip is None:  # otherwise the clip decides
        least = request.start.least_frames
        fewer = (request.num_frames - least) // LATENT_FRAMES
        longer = _largest(lambda n: fits(num_frames=LATENT_FRAMES * n + least), fewer)
        if longer is not None:
            remedies.append(f"{_frames(LATENT_FRAMES * longer + least)} at this size")

    def scaled(rows: int) -> dict[str, int]:
        columns = max(1, round(rows * request.width / request.height))
        return {"height": rows * TOKEN_PIXELS, "width": columns * TOKEN_PIXELS}

    rows = _largest(lambda less: fits(**scaled(less + 1)), request.height // TOKEN_PIXELS - 1)
    if rows is not None:
        size = scaled(rows + 1)
        number = request.num_frames
        remedies.append(f"{size['width']}x{size['height']} with {'all ' if number > 1 else ''}{_frames(number)}")
    if not remedies:
        return "no size fits; free some memory, or use a smaller checkpoint"
    return f"what fits: {' or '.join(remedies)}"


def _largest(fits: Callable[[int], bool], below: int) -> int | None:
    """The largest number in 0 ... below - 1 that fits, or None. Every number below one that fits must fit too."""
    low, high = -1, below
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return None if low < 0 else low


_HOST = DeviceName("cpu")


def _frames(number: int) -> str:
    return "1 frame" if number == 1 else f"{number} frames"


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"


@dataclass(frozen=True)
class _Host:
    type: str = "cpu"
    index: int | None = None


def check_cache_fits(size: int) -> None:
    """Raise ValueError with numbers and a remedy if keys and values of so many bytes cannot stay in host memory."""
    available = available_memory(_HOST)
    if size > available:
        raise ValueError(
            f"the keys and values of the conditioning frames take {_gib(size)} of the host's memory and "
            f"{_gib(available)} are available; turn kv_cache off, or use fewer cond_frames or a smaller size"
        )


def check_weights_fit(shape: ModelShape, name: str, device: Device, weights: LoadOptions, held: int = 0) -> None:
    """Raise ValueError with numbers and a remedy if a model cannot be loaded.

    held: bytes of the device in use now that will be free by then.
    """
    if weights.gpus > shape.heads:
        raise ValueError(
            f"{weights.gpus} GPUs cannot share {name}, whose transformer has {shape.heads} attention heads, of which "
            f"each takes one at least; use --gpus {shape.heads} or fewer"
        )
    available, host = available_memory(device) + held, available_memory(_HOST)
    needed, in_host = footprint.weight_bytes(shape, device, weights), footprint.host_bytes(shape, device, weights)
    if needed <= available and in_host <= host:
        return

    def fits(options: LoadOptions) -> bool:
        return footprint.weight_bytes(shape, device, options) <= available

    smaller = smaller_weights(shape, device, weights, fits)
    remedy = "use a larger device, or a smaller checkpoint" if smaller is None else f"try {smaller}"
    if needed > available:
        kind = _WORDS[choose_precision(weights, device, shape.hidden).name] + (f" with {weights}" if weights else "")
        raise ValueError(
            f"the weights of {name} take {needed / 2**30:,.1f} GiB in {kind} and {available / 2**30:,.1f} GiB of "
            f"memory are available on {device}; {remedy}"
        )
    raise ValueError(
        f"with {weights}, {in_host / 2**30:,.1f} GiB of the weights of {name} stay in the host's memory, where "
        f"{host / 2**30:,.1f} GiB are available; {remedy}"
    )


def smaller_weights(
    shape: ModelShape, device: Device, weights: LoadOptions, fits: Callable[[LoadOptions], bool]
) -> LoadOptions | None:
    """The smallest change of `weights` for which `fits` is true, among those that device and host can run; or None."""
    host = available_memory(_Host())

    def possible(options: LoadOptions) -> bool:
        return footprint.host_bytes(shape, device, options) <= host and _runs(device, options) and fits(options)

    return next(filter(possible, weights.smaller()), None)


def _runs(device: Device, weights: LoadOptions) -> bool:
    if device.type != "cuda":
        return not weights.offload  # offload on the CPU would only copy within host memory
    torch = sys.modules.get("torch")
    if weights.quantization is None or torch is None or not torch.cuda.is_available():
        return True
    from pipeline.weights.fp8 import CAPABILITY

    return torch.cuda.get_device_capability(device.index or 0) >= CAPABILITY
