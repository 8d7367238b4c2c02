"""Which device a pipeline will run on, told without PyTorch wherever that can be."""

from __future__ import annotations

import re
from importlib import metadata
from typing import NamedTuple

from pipeline.limits import gpu_of
from pipeline.resources import read_resources


class DeviceName(NamedTuple):
    """A device of another process, with the names of `torch.device`; such a process has no need of PyTorch."""

    type: str
    index: int | None = None

    @classmethod
    def parse(cls, text: str) -> DeviceName:
        kind, _, index = text.partition(":")
        return cls(kind, int(index) if index else None)

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"


def expected_device(device: str) -> DeviceName:
    """What "auto", "cpu", "cuda" or "cuda:N" will be for the process that loads the model.

    NVML answers. Where its answer leaves a doubt PyTorch is imported and asked, which takes seconds. Only of "auto" may
    the loaded pipeline show another one: where NVML sees a GPU whose driver PyTorch cannot use, or the reverse.

    Raises:
        ValueError: the device does not exist here.
    """
    if device == "cpu" or (device == "auto" and not read_resources().gpus):
        return DeviceName("cpu")
    if (asked := re.fullmatch(r"auto|cuda(?::(\d{1,3}))?", device)) and "+cpu" not in metadata.version("torch"):
        name = DeviceName("cuda", int(asked[1] or 0))
        if gpu_of(name) is not None:
            return name
    from pipeline.longcat import choose_device

    return DeviceName.parse(str(choose_device(device)))
