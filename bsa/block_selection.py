"""The value that joins selection and attention: which key blocks each query block attends to."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class BlockSelection(NamedTuple):
    """Key blocks per query block, ascending within the valid prefix of length ``counts``.

    indices: int32 [B, H, NQ, S]; entries past the prefix are valid block numbers but mean nothing.
    counts: int32 [B, H, NQ], each from 1 to S.
    whole_counts: None, or int32 [B, H, NQ]: so many blocks that the edge does not cut come first, then the cut
        ones, each group ascending. The order in which the Triton kernels want them.
    """

    indices: Tensor
    counts: Tensor
    whole_counts: Tensor | None = None

    def mask(self, key_blocks: int) -> Tensor:
        """The same choice as booleans, [B, H, NQ, key_blocks]; of a part of the lists, [..., key_blocks]."""
        unused = torch.arange(self.indices.shape[-1], device=self.counts.device) >= self.counts[..., None]
        # What is past a row's prefix may name a block that is in it, so it goes into a column of its own.
        mask = unused.new_zeros(*self.counts.shape, key_blocks + 1)
        return mask.scatter_(-1, self.indices.long().masked_fill(unused, key_blocks), True)[..., :key_blocks]

    def density(self, key_blocks: int) -> Tensor:
        """Kept fraction of all block pairs, as a 0-d tensor (reading it waits for the device)."""
        return self.counts.double().mean() / key_blocks
