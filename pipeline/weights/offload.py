"""Layerwise offload: the blocks' weights stay in host memory, and the GPU has room for two blocks at a time.

While one block computes, a separate stream copies the next block's weights from pinned memory. At 704p x 93 frames a
block computes several times longer than its copy takes, so the copies should cost little; docs/hopper.md has the
numbers. On the CPU the same code copies within the host, which only tests need.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from pipeline.request.load_options import LoadOptions
from pipeline.weights import Net
from pipeline.weights.fp8 import to_fp8

logger = logging.getLogger("pipeline")

_ALIGN = 256  # bytes; aligned for the vector loads of every kernel


class Offload:
    """Keeps the weights of ``model.blocks`` in host memory and moves the rest of the model to the device.

    The blocks stay usable as modules: outside the iteration of `blocks`, their weights are views of host memory.
    """

    def __init__(self, model: Net, device: torch.device) -> None:
        """Copy the blocks one after the other, from any device, to host memory, pinned if possible.

        Raises:
            torch.OutOfMemoryError: two blocks and the rest of the model do not fit on the device.
        """
        self._device = torch.device(device)
        self._cuda = self._device.type == "cuda"
        self._stored = [_Stored(block, self._cuda) for block in model.blocks]
        for name, child in model.named_children():
            if name != "blocks":
                child.to(self._device)
        size = max(len(stored.host) for stored in self._stored)
        self._slots = [torch.empty(size, dtype=torch.uint8, device=self._device) for _ in range(2)]
        self._copies = torch.cuda.Stream(self._device) if self._cuda else None

    @property
    def device_bytes(self) -> int:
        """Bytes of device memory for the two blocks."""
        return sum(len(slot) for slot in self._slots)

    @property
    def host_bytes(self) -> int:
        """Bytes of host memory for all blocks."""
        return sum(len(stored.host) for stored in self._stored)

    def blocks(self, count: int | None = None) -> Iterator[Net]:
        """Yield the blocks in order. Each has its weights on the device until the next one is requested.

        count: number of blocks, from the first one on; None for all.
        """
        passing = self._stored[:count]
        ready = [torch.cuda.Event() for _ in passing] if self._cuda else []
        if self._copies is not None:
            # kernels of an earlier pass may still read these two places
            self._copies.wait_stream(torch.cuda.current_stream(self._device))
        self._fetch(0, ready)
        for number, stored in enumerate(passing):
            if number + 1 < len(passing):
                self._fetch(number + 1, ready)
            if self._cuda:
                torch.cuda.current_stream(self._device).wait_event(ready[number])
            stored.show(self._slots[number % 2])
            try:
                yield stored.block
            finally:
                stored.show(stored.host)
            if self._copies is not None:
                # block number + 2 takes this place, so its copy must wait for the kernels that were just queued
                self._copies.wait_stream(torch.cuda.current_stream(self._device))

    def _fetch(self, number: int, ready: list[torch.cuda.Event]) -> None:
        host = self._stored[number].host
        with torch.cuda.stream(self._copies) if self._cuda else nullcontext():
            self._slots[number % 2][: len(host)].copy_(host, non_blocking=True)
        if self._cuda:
            ready[number].record(self._copies)


class _Stored:
    """One block, with its weights in one piece of host memory."""

    def __init__(self, block: Net, pin: bool) -> None:
        self.block = block
        self._places: list[tuple[Tensor, int, int]] = []  # tensor of the module, first byte, bytes
        size = 0
        for tensor in (*block.parameters(), *block.buffers()):
            count = tensor.numel() * tensor.element_size()
            self._places.append((tensor, size, count))
            size += -(-count // _ALIGN) * _ALIGN
        self.host = torch.empty(size, dtype=torch.uint8)
        if pin:
            self._pin()
        for tensor, first, count in self._places:
            self.host[first : first + count].view(tensor.dtype).view(tensor.shape).copy_(tensor.detach())
        self.show(self.host)

    def show(self, storage: Tensor) -> None:
        """Make the block's weights views of `storage`, which holds a copy of them."""
        for tensor, first, count in self._places:
            tensor.data = storage[first : first + count].view(tensor.dtype).view(tensor.shape)

    def _pin(self) -> None:
        """Pin the memory for fast copies. PyTorch's own pinned memory would round up to powers of two, up to twice."""
        runtime, host = torch.cuda.cudart(), self.host
        if int(code := runtime.cudaHostRegister(host.data_ptr(), host.numel(), 0)) != 0:
            gib = host.numel() / 2**30
            logger.warning("%.1f GiB of host memory cannot be pinned (%s); copies to the GPU will be slower", gib, code)
            return
        weakref.finalize(self, runtime.cudaHostUnregister, host.data_ptr()).atexit = False


def place(transformer: Net, device: torch.device, dtype: torch.dtype, weights: LoadOptions) -> Offload | None:
    """Bring a transformer from host memory to `device` in `dtype`, block after block.

    Besides the blocks that stay, the GPU never holds more than one block in `dtype`. Rounding to 8 bits is done on the
    GPU, because it takes a CPU minutes.

    Returns the `Offload` that brings the blocks, or None if they are not offloaded.

    Raises:
        ValueError: the layers cannot be quantised.
        torch.OutOfMemoryError: the weights that stay do not fit on the device.
    """
    for name, child in transformer.named_children():
        if name != "blocks":
            child.to(dtype)
    for number, block in enumerate(transformer.blocks):
        block.to(dtype)
        if weights.quantization is not None:
            block.to(device)
            to_fp8(transformer, slice(number, number + 1))
        block.to("cpu" if weights.offload else device)
    if weights.offload:
        return Offload(transformer, device)
    transformer.to(device)
    return None


class LayerByLayer:
    """Keeps a model in host memory and brings each of its layers to the device for its own call only.

    This suits a model that runs rarely, such as a text encoder: nothing is copied ahead or pinned.
    """

    def __init__(self, model: Net, layers: Iterable[Net], device: torch.device) -> None:
        """layers: those that are called one after the other. The rest is on the device while `on_device` lasts."""
        self._device = device
        own: set[Tensor] = set()
        for layer in layers:
            stored = _stored(layer)
            own |= stored.keys()
            layer.register_forward_pre_hook(_bringing(stored, device))
            layer.register_forward_hook(_returning(stored), always_call=True)
        self._rest = {tensor: data for tensor, data in _stored(model).items() if tensor not in own}

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """A block in which the model can be called with inputs on the device."""
        try:
            _bringing(self._rest, self._device)()
            yield
        finally:
            _returning(self._rest)()


def _stored(module: Net) -> dict[Tensor, Tensor]:
    return {tensor: tensor.data for tensor in (*module.parameters(), *module.buffers())}


def _bringing(stored: dict[Tensor, Tensor], device: torch.device):
    def bring(*_: Any) -> None:
        for tensor, data in stored.items():
            tensor.data = data.to(device, copy=True)

    return bring


def _returning(stored: dict[Tensor, Tensor]):
    def put_back(*_: Any) -> None:
        for tensor, data in stored.items():
            tensor.data = data

    return put_back
