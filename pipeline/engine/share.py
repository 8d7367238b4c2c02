"""Divides one machine among several engines: each gets GPUs of its own, or an equal part of the processor's threads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.machine.device import DeviceName, expected_device
from pipeline.machine.gpus import visible_gpus
from pipeline.machine.resources import read_resources

VISIBLE = "CUDA_VISIBLE_DEVICES"
THREADS = "OMP_NUM_THREADS"  # which PyTorch takes for all its pools


@dataclass(frozen=True)
class Share:
    """The part of one engine. By default there is one engine, which sees what this process sees.

    environment: variables that its process gets besides those of this one.
    device: what its process is to load the model to; "" for what the server was asked for.
    gpus: names of its GPUs as in CUDA_VISIBLE_DEVICES, and none where it sees all.
    first: this process's number of the first of them, which the engine counts as 0.
    text: the share in words.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    device: str = ""
    gpus: tuple[str, ...] = ()
    first: int = 0
    text: str = "the whole machine"

    def as_here(self, device: DeviceName) -> DeviceName:
        """The engine's device, by the numbers of this process."""
        return DeviceName(device.type, self.first + (device.index or 0)) if self.gpus else device


WHOLE = Share()


def check_engines(engines: int) -> None:
    """ValueError unless it is a number of engines."""
    if engines < 1:
        raise ValueError(f"--engines is {engines}; use 1 or more")


def shares(device: str, gpus: int, engines: int) -> list[Share]:
    """Divide this machine between `engines` engines of `gpus` GPUs each.

    device: as for `expected_device`; with several engines it is the first GPU of the first one.

    Raises:
        ValueError: the device does not exist, or there are not so many GPUs or threads; with numbers and a remedy.
    """
    check_engines(engines)
    first = expected_device(device, gpus)
    if engines == 1:
        return [WHOLE]
    if first.type != "cuda":
        return _of_threads(gpus, engines)
    return _of_gpus(0 if device == "auto" else first.index or 0, gpus, engines)


def _of_gpus(first: int, gpus: int, engines: int) -> list[Share]:
    names = _visible()
    most = (len(names) - first) // gpus
    if engines > most:
        each = "one GPU" if gpus == 1 else f"{gpus} GPUs"
        fewer = "" if gpus == 1 else ", or a smaller --gpus"
        raise ValueError(
            f"{engines} engines of {each} take {engines * gpus} from cuda:{first} on, and this machine has "
            f"{len(names)}, counted from 0; use --engines {most} or fewer{fewer}"
        )
    parts = []
    for start in range(first, first + engines * gpus, gpus):
        own = tuple(names[start : start + gpus])
        text = f"GPU{'s' if gpus > 1 else ''} {', '.join(own)}"
        parts.append(Share({VISIBLE: ",".join(own)}, "cuda:0", own, start, text))
    return parts


def _visible() -> list[str]:
    """The GPUs that CUDA sees here, by the names that CUDA_VISIBLE_DEVICES takes."""
    given = os.environ.get(VISIBLE)
    count = len(visible_gpus(read_resources().gpus)) or _count()
    return [str(number) for number in range(count)] if given is None else given.replace(" ", "").split(",")[:count]


def _count() -> int:
    import torch  # only where NVML leaves a doubt

    return torch.cuda.device_count()


def _of_threads(gpus: int, engines: int) -> list[Share]:
    there = processor_threads()
    if engines * gpus > there:
        each = "" if gpus == 1 else f" of {gpus} processes"
        most = there // gpus
        remedy = f"use --engines {most} or fewer" if most else f"use --gpus {there} or fewer"
        raise ValueError(
            f"{engines} engines{each} take {engines * gpus} threads of the processor at least, and {there} are there; "
            f"{remedy}"
        )
    threads = there // (engines * gpus)
    text = f"{threads} of {there} threads of the processor" + (f", in each of {gpus} processes" if gpus > 1 else "")
    return [Share({THREADS: str(threads)}, "cpu", text=text)] * engines


def processor_threads() -> int:
    """Threads of the processor that this process may use, fewer where OMP_NUM_THREADS says so."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get(THREADS, "")
    return min(there, int(given)) if given.isdecimal() and int(given) else there
