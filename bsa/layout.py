"""Converts raster token order to block-major order and back.

A block-major tensor is [B, H, N, C, D]: N blocks in raster order of the block grid, each with space for C tokens. A
smaller block at the edge of the grid has its true tokens first and C - size padding rows after them, so the mask is
simply "position < size". Padding repeats the block's first token: it is always finite and always a token of the block.

Block order is the same without padding: [B, S, H, D] with each block's tokens next to each other. A model can keep its
tokens in this order from the first layer to the last. Block n begins at ``starts[n]``.

Chunks of two sizes can share one block order if the smaller divides the larger: the tokens of each large block are
then sorted by small blocks. See `nested_layouts`.

The first frames of a video may be given, and only the rest be made. A layout with ``lead`` cuts them apart: no block
holds tokens of both, and the tokens of the first frames come first in block order too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from bsa.grid import Grid


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """Divides a token grid into chunks. ``chunk`` and ``nest`` are clipped to the grid, which changes no block.

    lead: first frames that are cut apart from the rest, from 0 to those of the grid; all are the same as none.
    nest: another chunk whose blocks are contiguous in the same order, or None. If it is the smaller one, the tokens of
        each block are sorted by its blocks. If it is the larger one, blocks are numbered in its order, one large block
        after the other, and no longer in raster order of the block grid.

    Raises ValueError for another lead, or if neither chunk divides the other.
    """

    grid: Grid
    chunk: Grid
    lead: int = 0
    nest: Grid | None = None

    def __post_init__(self) -> None:
        grid, lead = Grid(*self.grid), self.lead
        if not 0 <= lead <= grid.t:
            given = f"{lead} frames cannot be cut apart from the {grid.t} of the grid {grid}"
            raise ValueError(f"{given}; use 0 to {grid.t}")
        lead %= grid.t
        object.__setattr__(self, "grid", grid)
        object.__setattr__(self, "lead", lead)
        object.__setattr__(self, "chunk", grid.clip(Grid(*self.chunk), lead))
        if self.nest is None:
            return
        nest = grid.clip(Grid(*self.nest), lead)
        if not grid.nests(self.chunk, nest, lead):
            raise ValueError(f"chunks of {self.chunk} and {nest} share no block order: neither divides the other")
        object.__setattr__(self, "nest", None if nest == self.chunk else nest)

    @property
    def blocks(self) -> Grid:
        return self.grid.blocks(self.chunk, self.lead)

    @property
    def ragged(self) -> bool:
        return self.grid.ragged_blocks(self.chunk, self.lead) > 0

    @property
    def first(self) -> BlockLayout:
        """The layout of the first ``lead`` frames alone: the first blocks of this one."""
        return BlockLayout(self.grid._replace(t=self.lead), self.chunk, nest=self.nest)

    @property
    def rest(self) -> BlockLayout:
        """The layout of the frames after them: the last blocks of this one."""
        return BlockLayout(self.grid._replace(t=self.grid.t - self.lead), self.chunk, nest=self.nest)

    def sizes(self, device: torch.device) -> Tensor:
        """Number of true tokens per block, int32 [N]. Shared: do not write to it."""
        return _tables(self, device).sizes

    def block_of_token(self, device: torch.device) -> Tensor:
        """Block index of every raster token, int64 [S]. Shared: do not write to it."""
        return _tables(self, device).block_of_token

    def starts(self, device: torch.device) -> Tensor:
        """Position of each block's first token in block order, int32 [N]. Shared: do not write to it."""
        return _tables(self, device).starts

    def order(self, device: torch.device) -> Tensor:
        """Raster number of the token at each position of block order, int64 [S]. Shared: do not write to it."""
        return _tables(self, device).order

    def place_of_token(self, device: torch.device) -> Tensor:
        """Position in block order of every raster token, int64 [S]; the inverse of ``order``. Shared, as above."""
        return _tables(self, device).place_of_token

    def token_of_slot(self, device: torch.device) -> Tensor:
        """Raster number of the token in every slot of block-major order, int64 [N * C]; padding repeats the first token
        of its block. Shared: do not write to it."""
        return _tables(self, device).token_of_slot

    def raster_numbers(self, device: torch.device) -> Tensor:
        """Number of each block in raster order of the block grid, int32 [N]. Shared: do not write to it."""
        return _tables(self, device).raster_numbers

    def blocks_from_order(self, x: Tensor) -> Tensor:
        """Block order [B, S, H, D] to block-major [B, H, N, C, D]. A view if all blocks are full."""
        batch, _, heads, dim = x.shape
        blocks, chunk = self.blocks.volume, self.chunk.volume
        if self.ragged:
            x = x.index_select(1, _tables(self, x.device).place_of_slot)
        return x.view(batch, blocks, chunk, heads, dim).permute(0, 3, 1, 2, 4)

    def order_from_blocks(self, x: Tensor) -> Tensor:
        """Block-major [B, H, N, C, D] to contiguous block order [B, S, H, D], without padding rows."""
        x = x.permute(0, 2, 3, 1, 4).flatten(1, 2)
        return x.index_select(1, _tables(self, x.device).slot_of_place) if self.ragged else x.contiguous()

    def to_blocks(self, x: Tensor) -> Tensor:
        """Raster order [B, H, S, D] to contiguous block-major [B, H, N, C, D]."""
        batch, heads, _, dim = x.shape
        blocks, chunk = self.blocks, self.chunk
        if self.ragged or self.nest is not None:
            x = x.index_select(2, _tables(self, x.device).token_of_slot)
        else:
            x = x.reshape(batch, heads, blocks.t, chunk.t, blocks.h, chunk.h, blocks.w, chunk.w, dim)
            x = x.permute(0, 1, 2, 4, 6, 3, 5, 7, 8)
        return x.reshape(batch, heads, blocks.volume, chunk.volume, dim).contiguous()

    def from_blocks(self, x: Tensor) -> Tensor:
        """Block-major [B, H, N, C, D] to contiguous raster order [B, H, S, D], without padding rows."""
        batch, heads, dim = x.shape[0], x.shape[1], x.shape[-1]
        blocks, chunk = self.blocks, self.chunk
        if self.ragged or self.nest is not None:
            return x.flatten(2, 3).index_select(2, _tables(self, x.device).slot_of_token)
        x = x.reshape(batch, heads, *blocks, *chunk, dim).permute(0, 1, 2, 5, 3, 6, 4, 7, 8)
        return x.reshape(batch, heads, self.grid.volume, dim).contiguous()

    def pool(self, x: Tensor) -> Tensor:
        """Mean over each block's true tokens, [B, H, N, C, D] to [B, H, N, D], in fp32 (fp64 stays fp64)."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        if not self.ragged:
            return x.mean(dim=3, dtype=dtype)
        if x.is_cuda:
            return self._pool_without_copy(x, dtype)
        weights = _tables(self, x.device).pool_weights.to(dtype)
        return torch.einsum("bhncd,nc->bhnd", x.to(dtype), weights)

    def _pool_without_copy(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """`pool` without an fp32 copy of x. Padding repeats the first token, so it can be subtracted from the sum."""
        sizes = self.sizes(x.device)[:, None].to(dtype)
        padding = (self.chunk.volume - sizes) * x[:, :, :, 0]
        return (x.sum(dim=3, dtype=dtype) - padding) / sizes


def nested_layouts(grid: Grid, chunk_q: Grid, chunk_k: Grid, lead: int = 0) -> tuple[BlockLayout, BlockLayout]:
    """The layouts of queries and keys in one block order. They are equal if the chunks are.

    Raises ValueError if neither chunk divides the other.
    """
    return BlockLayout(grid, chunk_q, lead, chunk_k), BlockLayout(grid, chunk_k, lead, chunk_q)


@dataclass(frozen=True, slots=True)
class _Tables:
    raster_numbers: Tensor
    sizes: Tensor
    starts: Tensor
    order: Tensor
    place_of_token: Tensor
    place_of_slot: Tensor
    slot_of_place: Tensor
    block_of_token: Tensor
    token_of_slot: Tensor
    slot_of_token: Tensor
    pool_weights: Tensor


@lru_cache(maxsize=64)
def _tables(layout: BlockLayout, device: torch.device) -> _Tables:
    # Index tensors made in inference mode could not be saved for a later backward pass.
    with torch.inference_mode(False), torch.no_grad():
        grid, chunk, blocks, lead = layout.grid, layout.chunk, layout.blocks, layout.lead
        block = _raster_block(grid, chunk, lead)
        # A stable sort by block lists each block's tokens together, in raster order within the block.
        tokens, raster_numbers = block.argsort(stable=True), torch.arange(blocks.volume)
        if layout.nest is not None:
            nest = _raster_block(grid, layout.nest, lead)
            small, large = (block, nest) if chunk.volume < layout.nest.volume else (nest, block)
            tokens = (large * grid.volume + small).argsort(stable=True)
            # blocks are numbered as they appear
            raster_numbers, ordered = block[tokens].unique_consecutive(return_inverse=True)
            block = torch.empty_like(block).scatter_(0, tokens, ordered)
        sizes = block.bincount(minlength=blocks.volume)
        first = sizes.cumsum(0) - sizes
        rank = torch.arange(grid.volume) - first[block[tokens]]
        slot = block[tokens] * chunk.volume + rank
        token_of_slot = tokens[first].repeat_interleave(chunk.volume)
        token_of_slot[slot] = tokens
        slot_of_token = torch.empty_like(tokens)
        slot_of_token[tokens] = slot
        place_of_token = torch.empty_like(tokens)
        place_of_token[tokens] = torch.arange(grid.volume)
        valid = torch.arange(chunk.volume) < sizes[:, None]
        return _Tables(
            raster_numbers=raster_numbers.int().to(device),
            sizes=sizes.int().to(device),
            starts=first.int().to(device),
            order=tokens.to(device),
            place_of_token=place_of_token.to(device),
            place_of_slot=place_of_token[token_of_slot].to(device),
            slot_of_place=slot.to(device),
            block_of_token=block.to(device),
            token_of_slot=token_of_slot.to(device),
            slot_of_token=slot_of_token.to(device),
            pool_weights=(valid / sizes[:, None]).to(device),
        )


def _raster_block(grid: Grid, chunk: Grid, lead: int) -> Tensor:
    """The block of every raster token, int64 [S], in raster order of the block grid."""
    t, h, w = torch.meshgrid(*map(torch.arange, grid), indexing="ij")
    blocks = grid.blocks(chunk, lead)
    block_t = torch.where(t < lead, t // chunk.t, -(-lead // chunk.t) + (t - lead) // chunk.t)
    return ((block_t * blocks.h + h // chunk.h) * blocks.w + w // chunk.w).flatten()
