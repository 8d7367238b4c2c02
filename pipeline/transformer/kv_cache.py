"""Keeps the keys and values of conditioning frames from one forward pass to the next.

Nothing in these frames depends on the frames that are made, so one pass over them serves every denoising step of a
continuation, which then is that much shorter, as in LongCat-Video's code. Keys are kept after RMSNorm and rotary
embedding: conditioning frames are always the first, so their positions never change.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class _Kept(NamedTuple):
    keys: Tensor
    values: Tensor
    pooled: Tensor | None


class KeyValues:
    """The keys and values of one row of conditioning frames in every layer, in the order that a forward has them.

    on_host: keep them in host memory, pinned where there is a GPU, from where each layer fetches its own.
    """

    def __init__(self, on_host: bool = False) -> None:
        self.filled = False
        self._on_host = on_host
        self._layers: list[_Kept] = []

    @property
    def bytes(self) -> int:
        """Bytes that are kept."""
        tensors = (tensor for layer in self._layers for tensor in layer if tensor is not None)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def join(self, layer: int, keys: Tensor, values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """While it is filled: keep a layer's keys and values, and return them. Afterwards: return all keys and values,
        those kept and then those given, along the axis `dim` of the tokens."""
        if not self.filled:
            self._layers.append(_Kept(self._put(keys), self._put(values), None))
            return keys, values
        kept = self._layers[layer]
        return self._before(kept.keys, keys, dim), self._before(kept.values, values, dim)

    def join_pooled(self, layer: int, pooled: Tensor) -> Tensor:
        """The same for the mean keys of a layer's blocks, [B, heads, blocks, D], or cells, after `join`."""
        kept = self._layers[layer]
        if not self.filled:
            self._layers[layer] = kept._replace(pooled=self._put(pooled))
            return pooled
        before = kept.pooled
        assert before is not None  # every forward of one generation selects alike
        if before.ndim == 5:  # frames that are fewer than a chunk fill only its first cells
            cells = max(before.shape[3], pooled.shape[3])
            before, pooled = (F.pad(x, (0, 0, 0, cells - x.shape[3])) for x in (before, pooled))
        return self._before(before, pooled, dim=2)

    def _put(self, x: Tensor) -> Tensor:
        if not self._on_host:
            return x
        host = torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda)
        return host.copy_(x, non_blocking=True)

    @staticmethod
    def _before(kept: Tensor, new: Tensor, dim: int) -> Tensor:
        kept = kept.to(new.device, non_blocking=True).expand(new.shape[0], *kept.shape[1:])
        return torch.cat([kept, new], dim)
