"""Attention with conditioning frames as calls without: first their queries over their keys, then the rest over all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bsa.layout import BlockLayout


class Part(NamedTuple):
    """Queries that may all attend to the same keys.

    queries, keys: their tokens among those that the operation got.
    q_blocks, k_blocks: their blocks among all of the queries and of the keys.
    q_layout, k_layout: of these queries and keys alone.
    """

    queries: slice
    keys: slice
    q_blocks: slice
    k_blocks: slice
    q_layout: BlockLayout
    k_layout: BlockLayout


EVERYTHING = slice(None)


def of(query_tokens: int, q_layout: BlockLayout, k_layout: BlockLayout) -> list[Part]:
    """The parts of a call, in the order of its queries. The layouts are of all frames; both have the same ``lead``.

    query_tokens: those of the whole grid, or of the frames after the first ``lead`` only.
    """
    if not q_layout.lead:
        return [Part(EVERYTHING, EVERYTHING, EVERYTHING, EVERYTHING, q_layout, k_layout)]
    if query_tokens < q_layout.grid.volume:
        return [Part(EVERYTHING, EVERYTHING, EVERYTHING, EVERYTHING, q_layout.rest, k_layout)]
    tokens, first_q, first_k = q_layout.first.grid.volume, q_layout.first, k_layout.first
    blocks = slice(first_q.blocks.volume), slice(first_k.blocks.volume)
    return [
        Part(slice(tokens), slice(tokens), *blocks, first_q, first_k),
        Part(slice(tokens, None), EVERYTHING, slice(blocks[0].stop, None), EVERYTHING, q_layout.rest, k_layout),
    ]


def joined(outputs: Sequence[Tensor], dim: int) -> Tensor:
    """The outputs of the parts along the axis of the tokens, without a copy of a single one."""
    return outputs[0] if len(outputs) == 1 else torch.cat(list(outputs), dim)
