"""Whether the weights of a model fit into the memory that there is, and the option with which they would."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

from pipeline import cost
from pipeline.limits import Device, available_memory
from pipeline.weights import Weights


class _Host(NamedTuple):
    type: str = "cpu"
    index: int | None = None


def check_room(shape: cost.ModelShape, name: str, device: Device, weights: Weights, held: int = 0) -> None:
    """Raises ValueError with the numbers and a remedy when a model cannot be loaded.

    held: bytes of the device that will be free by then.
    """
    available, host = available_memory(device) + held, available_memory(_Host())
    needed, in_host = cost.weight_bytes(shape, device, weights), cost.host_bytes(shape, device, weights)
    if needed <= available and in_host <= host:
        return

    way = smaller_weights(shape, device, weights, lambda way: cost.weight_bytes(shape, device, way) <= available)
    remedy = "use a larger device, or a smaller checkpoint" if way is None else f"try {way}"
    if needed > available:
        kind = ("bfloat16" if device.type == "cuda" else "fp32") + (f" with {weights}" if weights else "")
        raise ValueError(
            f"the weights of {name} take {needed / 2**30:,.1f} GiB in {kind} and {available / 2**30:,.1f} GiB of "
            f"memory are available on {device}; {remedy}"
        )
    raise ValueError(
        f"with {weights}, {in_host / 2**30:,.1f} GiB of the weights of {name} stay in the host's memory, where "
        f"{host / 2**30:,.1f} GiB are available; {remedy}"
    )


def smaller_weights(
    shape: cost.ModelShape, device: Device, weights: Weights, fits: Callable[[Weights], bool]
) -> Weights | None:
    """The least change of `weights` with which something fits, of those that device and host can run; or None."""
    host = available_memory(_Host())
    ways = (way for way in weights.smaller() if cost.host_bytes(shape, device, way) <= host and _runs(device, way))
    return next(filter(fits, ways), None)


def _runs(device: Device, weights: Weights) -> bool:
    if device.type != "cuda":
        return not weights.offload  # which only moves things from memory to memory
    torch = sys.modules.get("torch")
    if weights.quantization is None or torch is None or not torch.cuda.is_available():
        return True
    from pipeline.fp8 import CAPABILITY

    return torch.cuda.get_device_capability(device.index or 0) >= CAPABILITY
