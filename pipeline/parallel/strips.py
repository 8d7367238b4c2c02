"""Divides the rows of pictures among ranks: each decodes or encodes one strip of every frame.

The result is the same as on one GPU: strips do not overlap and are not blended.

A convolution needs one row beyond each edge of its strip, which neighbours give each other right before it. Attention
within a frame sees all rows. Everything else in Wan's VAE (norms, activations, resampling, the cache of earlier frames)
works on each pixel, or on 2 x 2 of them, and stays in the strip.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.parallel.sequence import cuts, gather_uneven


class Strips:
    """This rank's strip.

    group: the ranks that share a picture, from its top to its bottom.
    rows: of the latents, at least one for each rank. A strip of pixels has as many rows for each of them.
    """

    def __init__(self, group: dist.ProcessGroup, rows: int) -> None:
        self._group = group
        self._rank, self._size = dist.get_rank(group), dist.get_world_size(group)
        strips = cuts(rows, self._size)
        self._rows = [strip.stop - strip.start for strip in strips]
        self._mine = strips[self._rank]

    def cut(self, x: Tensor, scale: int = 1) -> Tensor:
        """This rank's rows of x [..., rows, columns]. scale: rows of x for each row of the latents."""
        return x[..., self._mine.start * scale : self._mine.stop * scale, :]

    def gather(self, x: Tensor, scale: int = 1, axis: int = -2) -> Tensor:
        """The strips of all ranks as one picture, on every rank. axis: that of the rows."""
        return gather_uneven(x, [rows * scale for rows in self._rows], axis % x.ndim, self._group)

    @contextmanager
    def divided(self, coder: nn.Module) -> Iterator[None]:
        """Within the block, an encoder or decoder of Wan's VAE takes and gives strips. All ranks run it alike."""
        replaced = []
        for module in coder.modules():
            if (forward := self._forward_of(module)) is not None:
                module.forward = forward
                replaced.append(module)
        try:
            yield
        finally:
            for module in replaced:
                del module.forward

    def _forward_of(self, module: Any) -> Any:
        """A replacement for the module's forward, or None where it needs no other rows."""
        if hasattr(module, "to_qkv"):
            return partial(self._attend, module.forward)
        if isinstance(module, nn.Conv3d) and module.kernel_size[1] > 1:
            return partial(self._convolve_clip, module)
        if isinstance(module, nn.Conv2d) and module.padding != (0, 0):
            return partial(self._convolve, module)
        if isinstance(module, nn.ZeroPad2d):
            return partial(self._pad, module.padding)
        return None

    def _convolve_clip(self, conv: Any, x: Tensor, before: Tensor | None = None) -> Tensor:
        """A causal convolution over [B, C, T, rows, columns], `before` being the frames that precede x, if any."""
        columns, _, rows, _, frames, _ = conv._padding
        batch, channels, count, height, width = x.shape
        padded = x.new_zeros(batch, channels, frames + count, height + 2 * rows, width + 2 * columns)
        inner = padded[..., rows : rows + height, columns : columns + width]
        inner[:, :, frames:] = x
        if before is not None:
            inner[:, :, frames - before.shape[2] : frames] = before
        self._fill_edges(padded, rows, rows)
        return F.conv3d(padded, conv.weight, conv.bias, conv.stride)

    def _convolve(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        rows, columns = map(int, conv.padding)  # by name it could be a word, which Wan's VAE does not use
        padded = F.pad(x, (columns, columns, rows, rows))
        self._fill_edges(padded, rows, rows)
        return F.conv2d(padded, conv.weight, conv.bias, conv.stride)

    def _pad(self, padding: tuple[int, int, int, int], x: Tensor) -> Tensor:
        padded = F.pad(x, padding)
        self._fill_edges(padded, padding[2], padding[3])
        return padded

    def _attend(self, forward: Any, x: Tensor) -> Tensor:
        whole = forward(gather_uneven(x, self._rows_of(x), x.ndim - 2, self._group))
        first = sum(self._rows_of(x)[: self._rank])
        return whole[..., first : first + x.shape[-2], :]

    def _rows_of(self, x: Tensor) -> list[int]:
        scale = x.shape[-2] // self._rows[self._rank]
        return [rows * scale for rows in self._rows]

    def _fill_edges(self, padded: Tensor, above: int, below: int) -> None:
        """Put the neighbours' rows into the padding of this strip. At the edges of the picture it stays zero."""
        height = padded.shape[-2]
        # a strip gives its last rows to the one below, and its first rows to the one above
        last, first = padded[..., height - below - above : height - below, :], padded[..., above : above + below, :]
        edges = torch.cat([last.flatten(), first.flatten()])
        every = edges.new_empty(self._size * edges.numel())
        dist.all_gather_into_tensor(every, edges, group=self._group)
        given = every.view(self._size, -1).split([last.numel(), first.numel()], dim=1)
        if above and self._rank > 0:
            padded[..., :above, :] = given[0][self._rank - 1].view(last.shape)
        if below and self._rank + 1 < self._size:
            padded[..., height - below :, :] = given[1][self._rank + 1].view(first.shape)
