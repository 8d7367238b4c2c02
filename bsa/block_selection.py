"""The value that joins selection and attention: the key blocks that each query block attends to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class BlockSelection(NamedTuple):
    """Key blocks per query block, ascending within the valid prefix of length ``counts``.

    indices: int32 [B, H, NQ, S]; entries past the prefix are valid block numbers without meaning.
    counts: int32 [B, H, NQ], each from 1 to S.
    whole_counts: None, or int32 [B, H, NQ], for the order that the Triton kernels need: this many full blocks come
        first, followed by the smaller blocks at the edge. Each group is ascending.
    """

    indices: Tensor
    counts: Tensor
    whole_counts: Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence[BlockSelection]) -> BlockSelection:
        """The lists of one part's query blocks, then those of the next. Their order within a list is left as it is."""
        if len(parts) == 1:
            return parts[0]
        width = max(part.indices.shape[-1] for part in parts)
        indices = [F.pad(part.indices, (0, width - part.indices.shape[-1])) for part in parts]
        return cls(torch.cat(indices, dim=2), torch.cat([part.counts for part in parts], dim=2))

    def part(self, q_blocks: slice, width: int | None = None) -> BlockSelection:
        """The lists of some query blocks, without the order of `whole_counts`. width: their length, where one part's
        are shorter than another's."""
        return BlockSelection(self.indices[:, :, q_blocks, :width], self.counts[:, :, q_blocks])

    def mask(self, key_blocks: int) -> Tensor:
        """The same selection as booleans, [B, H, NQ, key_blocks], or [..., key_blocks] for a part of the lists."""
        unused = torch.arange(self.indices.shape[-1], device=self.counts.device) >= self.counts[..., None]
        # An entry past the prefix may repeat a block of the prefix, so all of them go into an extra column.
        mask = unused.new_zeros(*self.counts.shape, key_blocks + 1)
        return mask.scatter_(-1, self.indices.long().masked_fill(unused, key_blocks), True)[..., :key_blocks]

    def density(self, key_blocks: int) -> Tensor:
        """Kept fraction of all block pairs, as a 0-d tensor. Reading it waits for the device."""
        return self.counts.double().mean() / key_blocks
