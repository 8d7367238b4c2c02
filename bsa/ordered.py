"""The operation for tokens that are already in block order. It copies neither inputs nor outputs.

A model that permutes its tokens once before its first layer (``BlockLayout.order``) and once after its last one calls
this in every layer. Queries, keys and values may keep the layout of the projections, with heads inside the tokens.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from bsa.attention import (
    check_alike,
    check_eight_bits,
    check_selection,
    checked_scale,
    join_parts,
    parts_of,
    pool_on_gpu,
    tuning_of,
)
from bsa.backends import resolve_backend
from bsa.block_selection import BlockSelection
from bsa.cells import cells_of
from bsa.config import BSAConfig
from bsa.layout import BlockLayout, nested_layouts
from bsa.selection import pool, select_pooled, without_autocast
from bsa.variants import Tuning


@overload
def block_order_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: BlockLayout,
    config: BSAConfig,
    *,
    pooled: tuple[Tensor, Tensor] | None = ...,
    backend: str = ...,
    scale: float | None = ...,
    tuning: Tuning | None = ...,
    selection: BlockSelection | None = ...,
    eight_bits: bool = ...,
    return_selection: Literal[False] = False,
) -> Tensor: ...


@overload
def block_order_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: BlockLayout,
    config: BSAConfig,
    *,
    pooled: tuple[Tensor, Tensor] | None = ...,
    backend: str = ...,
    scale: float | None = ...,
    tuning: Tuning | None = ...,
    selection: BlockSelection | None = ...,
    eight_bits: bool = ...,
    return_selection: Literal[True],
) -> tuple[Tensor, BlockSelection]: ...


def block_order_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: BlockLayout,
    config: BSAConfig,
    *,
    pooled: tuple[Tensor, Tensor] | None = None,
    backend: str = "auto",
    scale: float | None = None,
    tuning: Tuning | None = None,
    selection: BlockSelection | None = None,
    eight_bits: bool = False,
    return_selection: bool = False,
) -> Tensor | tuple[Tensor, BlockSelection]:
    """`block_sparse_attention` on tokens in block order.

    q, k, v: [B, S, H, D], tokens in the order ``layout.order``. There is no padding: blocks at the edge are simply
        shorter.
    layout: of the queries, the first of `nested_layouts` of the config's chunks; one chunk must divide the other. Its
        ``lead`` is the number of conditioning frames, of which q may leave the queries out.
    pooled: the mean query and the mean key of every block, each fp32 [B, H, N, D], if the caller already has them; for
        a config that selects by cells, of every cell, [B, H, N, K, D] (`bsa.cells`).
    backend: as in `block_sparse_attention`, without "reference".
    scale: factor on q @ k; 1 / sqrt(D) by default.
    tuning: the kernels of the triton backend; by default those measured to be best on this GPU.
    selection: as in `block_sparse_attention`, with blocks in raster order; nothing is pooled then.
    eight_bits: as in `block_sparse_attention`.
    return_selection: also return the BlockSelection that was used, with blocks in raster order as from
        `block_sparse_attention`.

    Returns q's shape, contiguous, in the same order. Raises ValueError for shapes or a layout that do not fit.
    """
    check_alike(q, k, v, "batch, tokens, heads, head_dim", layout)
    k_layout = _key_layout(layout, config)
    q_layout = layout if q.shape[1] == layout.grid.volume else layout.rest
    check_selection(selection, (q.shape[0], q.shape[2], q_layout.blocks.volume))
    given = selection and _renumbered(selection, q_layout, k_layout, to_raster=False)
    scale = checked_scale(scale, q.shape[-1])
    backend = resolve_backend(backend, q, k, v, known=("auto", "triton", "native", "torch"))
    check_eight_bits(eight_bits, backend)
    _check_pooled(pooled, config)
    outputs, selections = [], []
    with without_autocast(q.device):
        for part in parts_of(q.shape[1], layout, k_layout):
            some = q[:, part.queries], k[:, part.keys], v[:, part.keys]
            own = None
            if pooled is not None:
                places = (part.q_blocks, part.q_layout), (part.k_blocks, part.k_layout)
                own = _of_part(pooled[0], *places[0]), _of_part(pooled[1], *places[1])
            lists = part.of(given, config)
            layouts = part.q_layout, part.k_layout
            out, used = _attend(*some, *layouts, config, own, backend, scale, tuning, lists, eight_bits)
            outputs.append(out)
            selections.append(used)
    out = join_parts(outputs, dim=1)
    if not return_selection:
        return out
    return out, selection or _renumbered(BlockSelection.joined(selections), q_layout, k_layout, to_raster=True)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_layout: BlockLayout,
    k_layout: BlockLayout,
    config: BSAConfig,
    pooled: tuple[Tensor, Tensor] | None,
    backend: str,
    scale: float,
    tuning: Tuning | None,
    selection: BlockSelection | None,
    eight_bits: bool,
) -> tuple[Tensor, BlockSelection]:
    """Attention of queries that may all attend to all keys."""
    layouts = q_layout, k_layout
    tuning = tuning or (tuning_of(q, q_layout, k_layout) if backend == "triton" else Tuning())
    blocks: tuple[Tensor, ...] = ()
    if backend == "torch":
        blocks = q_layout.blocks_from_order(q), k_layout.blocks_from_order(k)
    if selection is None:
        # Cells are scored by a kernel of the fused top-k; without it, all their scores would be in memory.
        cells_by_kernel = config.selector.by_cells and backend == "triton"
        if pooled is None and backend == "triton":
            pooled = pool_on_gpu(q.transpose(1, 2), q_layout, config), pool_on_gpu(k.transpose(1, 2), k_layout, config)
        elif pooled is None:
            some = blocks or (q_layout.blocks_from_order(q), k_layout.blocks_from_order(k))
            pooled = pool(some[0], q_layout, config), pool(some[1], k_layout, config)
        selection = select_pooled(*pooled, *layouts, config, scale, fused=tuning.fused_top_k or cells_by_kernel)
    if backend in ("triton", "native"):
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        q, k, v, filled = (x.transpose(1, 2) for x in (q, k, v, out))
        if backend == "native":
            from bsa.native.attend import attend_natively

            attend_natively(q, k, v, selection, *layouts, scale, filled, raster=False)
        else:
            from bsa.kernels.attend import attend_tokens

            attend_tokens(q, k, v, selection, *layouts, scale, filled, variant=tuning.attention(eight_bits))
        return out, selection
    from bsa.gather import gathered_attention

    uniform = config.selector.uniform
    q, k, v = (x.contiguous() for x in (*blocks, k_layout.blocks_from_order(v)))
    out = gathered_attention(q, k, v, selection, *layouts, scale, uniform)
    return q_layout.order_from_blocks(out), selection


def _of_part(pooled: Tensor, blocks: slice, layout: BlockLayout) -> Tensor:
    """The means of a part's blocks, contiguous. Frames that are fewer than a chunk fill only its first cells."""
    if pooled.ndim == 4:
        return pooled[:, :, blocks]
    return pooled[:, :, blocks, : cells_of(layout, pooled.device).sizes.shape[1]].contiguous()


def _check_pooled(pooled: tuple[Tensor, Tensor] | None, config: BSAConfig) -> None:
    """Raise ValueError for means of blocks where the config compares cells, and the other way round."""
    axes = 5 if config.selector.by_cells else 4
    if pooled is not None and not pooled[0].ndim == pooled[1].ndim == axes:
        raise ValueError(
            f"the selection {config.selection!r} compares means of {axes} axes, and pooled has {pooled[0].ndim} and "
            f"{pooled[1].ndim}; leave it out, or pool as bsa.selection.pool does"
        )


def _key_layout(layout: BlockLayout, config: BSAConfig) -> BlockLayout:
    """The layout of the keys beside that of the queries. Raises ValueError if the config does not go with it."""
    layouts = nested_layouts(layout.grid, config.chunk_q, config.chunk_k, layout.lead)
    if layouts[0] != layout:
        nest = "" if layout.nest is None else f" nested with {layout.nest}"
        raise ValueError(
            f"the layout has chunks of {layout.chunk}{nest}, but the configuration {config.chunk_q} for queries and "
            f"{config.chunk_k} for keys; make the layout with nested_layouts"
        )
    return layouts[1]


def _renumbered(
    selection: BlockSelection, q_layout: BlockLayout, k_layout: BlockLayout, to_raster: bool
) -> BlockSelection:
    """The same selection with the blocks of nested layouts in raster order, or from it back in their own."""
    if k_layout.nest is None:
        return selection
    device = selection.indices.device
    rows, numbers = q_layout.raster_numbers(device), k_layout.raster_numbers(device)
    if to_raster:
        rows = rows.argsort()
    else:
        numbers = numbers.argsort().int()
    return BlockSelection(numbers[selection.indices[:, :, rows]], selection.counts[:, :, rows])
