"""Where the weights of a model go that was loaded to host memory: to the device for good, or only for their turn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.fp8 import to_fp8
from pipeline.offload import Offload
from pipeline.weights import Weights


def place(transformer: nn.Module, device: torch.device, dtype: torch.dtype, weights: Weights) -> Offload | None:
    """Bring a transformer from host memory to `device` in `dtype`, block after block; what brings its blocks if they
    are offloaded.

    A GPU never has more of it than it keeps and one block in `dtype`, and rounds to 8 bits, which takes a CPU minutes.

    Raises:
        ValueError: its layers cannot be quantised.
        torch.OutOfMemoryError: what stays does not fit into the device.
    """
    for name, child in transformer.named_children():
        if name != "blocks":
            child.to(dtype)
    for number, block in enumerate(transformer.blocks):
        block.to(dtype)
        if weights.quantization == "fp8":
            block.to(device)
            to_fp8(transformer, slice(number, number + 1))
        block.to("cpu" if weights.offload else device)
    if weights.offload:
        return Offload(transformer, device)
    transformer.to(device)
    return None


class Visiting:
    """Keeps a model in host memory that PyTorch calls layer by layer: each layer comes to the device for its own call.

    For a model that runs once in a while, such as a text encoder: nothing is copied ahead or pinned.
    """

    def __init__(self, model: nn.Module, layers: Iterable[nn.Module], device: torch.device) -> None:
        """layers: called one after the other; what else the model has comes for the time of `there`."""
        self._device = device
        own: set[Tensor] = set()
        for layer in layers:
            stored = _stored(layer)
            own |= stored.keys()
            layer.register_forward_pre_hook(_bringing(stored, device))
            layer.register_forward_hook(_returning(stored), always_call=True)
        self._rest = {tensor: data for tensor, data in _stored(model).items() if tensor not in own}

    @contextmanager
    def there(self) -> Iterator[None]:
        """While this lasts, the model can be called with inputs on the device."""
        try:
            _bringing(self._rest, self._device)()
            yield
        finally:
            _returning(self._rest)()


def _stored(module: nn.Module) -> dict[Tensor, Tensor]:
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
