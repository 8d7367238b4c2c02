"""The public operation: checks its inputs, lays out blocks, selects, attends, and restores raster order.

With conditioning frames it is two calls: first their queries over their keys, then the rest over all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from bsa.backends import resolve_backend
from bsa.block_selection import BlockSelection
from bsa.config import BSAConfig
from bsa.grid import Grid, as_grid
from bsa.layout import BlockLayout
from bsa.selection import pool, select_blocks, select_pooled, without_autocast
from bsa.variants import Tuning, tuning_for


@overload
def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Grid,
    config: BSAConfig,
    *,
    conditioning: int = ...,
    backend: str = ...,
    scale: float | None = ...,
    selection: BlockSelection | None = ...,
    eight_bits: bool = ...,
    return_selection: Literal[False] = False,
) -> Tensor: ...


@overload
def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Grid,
    config: BSAConfig,
    *,
    conditioning: int = ...,
    backend: str = ...,
    scale: float | None = ...,
    selection: BlockSelection | None = ...,
    eight_bits: bool = ...,
    return_selection: Literal[True],
) -> tuple[Tensor, BlockSelection]: ...


def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Grid,
    config: BSAConfig,
    *,
    conditioning: int = 0,
    backend: str = "auto",
    scale: float | None = None,
    selection: BlockSelection | None = None,
    eight_bits: bool = False,
    return_selection: bool = False,
) -> Tensor | tuple[Tensor, BlockSelection]:
    """Exact attention over the key blocks that pooled scores pick for each query block.

    q, k, v: [B, H, S, D], tokens in raster (frame, row, column) order of ``grid``; any strides.
    grid: token grid with t * h * w == S. Chunks that do not divide it leave smaller blocks at the edge, which are
        weighted by their true sizes.
    conditioning: number of first frames that are given, not made. Their queries attend to their own keys only, all
        others to every key, each by a selection of its own. No block holds tokens of both. q may leave the queries of
        these frames out, [B, H, (t - conditioning) * h * w, D], as it does where their keys and values were kept.
    backend: "triton" (CUDA, forward only), "native" (CPUs with AVX-512 and a C compiler, forward only), "torch" (any
        device, differentiable), "reference" (dense mask, small grids) or "auto", which picks one of the first three and
        logs which and why. A named backend never falls back to another.
    scale: factor on q @ k; 1 / sqrt(D) by default.
    selection: the blocks to attend to, instead of choosing some: what an earlier call with the same shapes and config
        returned. Its numbers are not checked, since that would wait for the device.
    eight_bits: compute the attention, not the selection, in 8 bits, for which the backend must be triton: int8 queries
        and keys, e4m3 weights and values (fp16 on a GPU below compute capability 8.9).
    return_selection: also return the BlockSelection that was used, of all query blocks over all key blocks of
        ``BlockLayout(grid, chunk, conditioning)``.

    Returns the output in q's shape and dtype. Autocast is ignored: inputs are used in their own dtype, scores for
    selection are fp32. Raises ValueError for shapes, dtypes or devices that do not fit.
    Source: LongCat-Video, arXiv 2510.22200, section 3.4.2 and appendix A.2; attention with conditioning frames as in
    its code.
    """
    grid = as_grid(grid, "grid")
    k_layout = BlockLayout(grid, config.chunk_k, conditioning)
    q_layout = BlockLayout(grid, config.chunk_q, conditioning)
    check_alike(q, k, v, "batch, heads, tokens, head_dim", q_layout)
    queries = q_layout if q.shape[2] == grid.volume else q_layout.rest
    check_selection(selection, (*q.shape[:2], queries.blocks.volume))
    scale = checked_scale(scale, q.shape[-1])
    backend = resolve_backend(backend, q, k, v)
    check_eight_bits(eight_bits, backend)
    outputs, selections = [], []
    with without_autocast(q.device):
        for part in parts_of(q.shape[2], q_layout, k_layout):
            some = q[:, :, part.queries], k[:, :, part.keys], v[:, :, part.keys]
            given = part.of(selection, config)
            out, used = _attend(*some, part.q_layout, part.k_layout, config, backend, scale, given, eight_bits)
            outputs.append(out)
            selections.append(used)
    out = join_parts(outputs, dim=2)
    return (out, BlockSelection.joined(selections)) if return_selection else out


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

    def of(self, selection: BlockSelection | None, config: BSAConfig) -> BlockSelection | None:
        """The lists of this part's query blocks, with the numbers of its own key blocks."""
        return selection and selection.part(self.q_blocks, config.selector.kept(self.k_layout.blocks.volume))


_ALL = slice(None)


def parts_of(query_tokens: int, q_layout: BlockLayout, k_layout: BlockLayout) -> list[Part]:
    """The parts of a call, in the order of its queries. The layouts are of all frames; both have the same ``lead``.

    query_tokens: those of the whole grid, or of the frames after the first ``lead`` only.
    """
    if not q_layout.lead:
        return [Part(_ALL, _ALL, _ALL, _ALL, q_layout, k_layout)]
    if query_tokens < q_layout.grid.volume:
        return [Part(_ALL, _ALL, _ALL, _ALL, q_layout.rest, k_layout)]
    tokens, first_q, first_k = q_layout.first.grid.volume, q_layout.first, k_layout.first
    blocks = slice(first_q.blocks.volume), slice(first_k.blocks.volume)
    return [
        Part(slice(tokens), slice(tokens), *blocks, first_q, first_k),
        Part(slice(tokens, None), _ALL, slice(blocks[0].stop, None), _ALL, q_layout.rest, k_layout),
    ]


def join_parts(outputs: Sequence[Tensor], dim: int) -> Tensor:
    """The outputs of the parts along the axis of the tokens, without a copy of a single one."""
    return outputs[0] if len(outputs) == 1 else torch.cat(list(outputs), dim)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_layout: BlockLayout,
    k_layout: BlockLayout,
    config: BSAConfig,
    backend: str,
    scale: float,
    selection: BlockSelection | None,
    eight_bits: bool,
) -> tuple[Tensor, BlockSelection]:
    """Attention of queries that may all attend to all keys."""
    if backend == "triton":
        return _attend_with_triton(q, k, v, q_layout, k_layout, config, scale, selection, eight_bits)
    if backend == "torch":
        from bsa.gather import gathered_attention

        blocks = q_layout.to_blocks(q), k_layout.to_blocks(k)
        selection = selection or select_blocks(*blocks, q_layout, k_layout, config, scale)
        v_blocks, uniform = k_layout.to_blocks(v), config.selector.uniform
        out = gathered_attention(*blocks, v_blocks, selection, q_layout, k_layout, scale, uniform)
        return q_layout.from_blocks(out), selection
    if selection is None:
        selection = select_blocks(q_layout.to_blocks(q), k_layout.to_blocks(k), q_layout, k_layout, config, scale)
    if backend == "reference":
        from bsa.reference import masked_attention

        return masked_attention(q, k, v, selection, q_layout, k_layout, scale), selection
    from bsa.native.attend import attend_natively

    out = torch.empty(q.shape, dtype=q.dtype)
    attend_natively(q, k, v, selection, q_layout, k_layout, scale, out, raster=True)
    return out, selection


def _attend_with_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_layout: BlockLayout,
    k_layout: BlockLayout,
    config: BSAConfig,
    scale: float,
    selection: BlockSelection | None,
    eight_bits: bool,
) -> tuple[Tensor, BlockSelection]:
    """Attend in block order, which has no padding. The conversion also gives the means of the blocks."""
    from bsa.kernels.attend import attend_tokens
    from bsa.kernels.order import from_order, to_order

    tuning = tuning_of(q, q_layout, k_layout)
    selector = config.selector
    pooling = selector.by_means and selection is None
    (q, q_pooled), (k, k_pooled) = to_order(q, q_layout, pooling), to_order(k, k_layout, pooling)
    v, _ = to_order(v, k_layout, means=False)
    if selection is None:
        if q_pooled is None or k_pooled is None:
            q_pooled, k_pooled = (pool_on_gpu(x, by, config) for x, by in ((q, q_layout), (k, k_layout)))
        # Cells are scored by a kernel of the fused top-k; without it, all their scores would be in memory.
        fused = tuning.fused_top_k or selector.by_cells
        selection = select_pooled(q_pooled, k_pooled, q_layout, k_layout, config, scale, fused=fused)
    out = torch.empty_like(q)
    variant = tuning.attention(eight_bits)
    attend_tokens(q, k, v, selection, q_layout, k_layout, scale, out, variant=variant)
    return from_order(out, q_layout), selection


def pool_on_gpu(x: Tensor, layout: BlockLayout, config: BSAConfig) -> Tensor:
    """`bsa.selection.pool` of x [B, H, S, D] in block order: cells by a kernel, without a copy in blocks."""
    if config.selector.by_cells:
        from bsa.kernels.cell_scores import pool_cells_in_order

        return pool_cells_in_order(x, layout)
    return pool(layout.blocks_from_order(x.transpose(1, 2)), layout, config)


def tuning_of(q: Tensor, q_layout: BlockLayout, k_layout: BlockLayout) -> Tuning:
    """The kernels measured to be best for these queries, [..., D], on their GPU."""
    if not q.is_cuda:
        return Tuning()
    dtype, gpu = str(q.dtype).removeprefix("torch."), torch.cuda.get_device_name(q.device)
    return tuning_for(gpu, dtype, q.shape[-1], q_layout.chunk.volume, k_layout.chunk.volume)


def checked_scale(scale: float | None, head_dim: int) -> float:
    """The factor on q @ k, by default 1 / sqrt(head_dim). Raises ValueError unless it is positive."""
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    if not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}; leave it out for 1 / sqrt(head_dim)")
    return scale


def check_alike(q: Tensor, k: Tensor, v: Tensor, axes: str, layout: BlockLayout) -> None:
    """Raise ValueError unless q, k, v are floating-point, share dtype and device, and have the layout's tokens.

    axes: names the shape, with the word tokens. k and v have every token; q may lack those of the first frames.
    """
    axis = axes.split(", ").index("tokens")
    same = q.ndim == 4 and k.shape == v.shape and q.ndim == k.ndim
    if not same or q.shape[:axis] + q.shape[axis + 1 :] != k.shape[:axis] + k.shape[axis + 1 :]:
        shapes = ", ".join(str(list(x.shape)) for x in (q, k, v))
        raise ValueError(f"q, k and v must have one shape [{axes}], got {shapes}")
    if not q.dtype == k.dtype == v.dtype or not q.device == k.device == v.device:
        kinds = ", ".join(f"{x.dtype} on {x.device}" for x in (q, k, v))
        raise ValueError(f"q, k and v must share one dtype and one device, got {kinds}")
    if not q.dtype.is_floating_point:
        raise ValueError(f"q, k and v must be floating point, got {q.dtype}; use bfloat16, float16 or float32")
    possible = {layout.grid.volume, layout.rest.grid.volume}
    for name, tokens, allowed in (("k", k.shape[axis], {layout.grid.volume}), ("q", q.shape[axis], possible)):
        if tokens not in allowed:
            without = f", and {layout.rest.grid.volume} without the first {layout.lead} frames" if layout.lead else ""
            raise ValueError(
                f"{name} has {tokens} tokens but the grid {layout.grid} has {layout.grid.volume}{without}; pass the "
                "grid these tokens came from"
            )


def check_selection(selection: BlockSelection | None, lists: tuple[int, ...]) -> None:
    """Raise ValueError unless a given selection has one list for each of [batch, heads, query blocks]."""
    if selection is None:
        return
    shapes = tuple(selection.indices.shape[:-1]), tuple(selection.counts.shape)
    if shapes != (lists, lists):
        raise ValueError(
            f"the selection has lists for {list(shapes[0])} and counts for {list(shapes[1])}, but there are "
            f"{list(lists)} of batch, heads and query blocks; pass one that was made for the same shapes"
        )


def check_eight_bits(eight_bits: bool, backend: str) -> None:
    """Raise ValueError if 8 bits are asked of a backend that does not compute in them."""
    if eight_bits and backend != "triton":
        raise ValueError(
            f"attention in 8 bits is computed by the triton backend, and this call runs on {backend}; leave eight_bits "
            "out, or use CUDA tensors without gradients"
        )
