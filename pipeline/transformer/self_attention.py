"""The self-attention of one generation, dense or block sparse, and the share of token pairs that it computed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bsa import BlockLayout, BlockSelection, BSAConfig, Grid, block_sparse_attention
from pipeline.parallel.ranks import Ranks
from pipeline.request.workload import Workload
from pipeline.transformer.forward import Attend, attend_dense
from pipeline.transformer.kept_selections import KeptSelections

# (q, k, selection) of every call; the tensors are those that `block_sparse_attention` takes and returns
Observer = Callable[[Tensor, Tensor, BlockSelection], None]


class DenseAttention:
    """Full attention. It is an `Attend` for `longcat_forward`."""

    def layers(self, depth: int, dense_layers: int, kept: KeptSelections) -> list[Attend]:
        """The attention of each layer in one step."""
        return [self] * depth

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, conditioning: int = 0) -> Tensor:
        return attend_dense(q, k, v, grid, conditioning)

    def share(self, ranks: Ranks) -> None:
        """Every rank attends to everything."""

    def density(self) -> float:
        return 1.0

    def blocks_kept(self) -> None:
        return None

    def blocks_total(self) -> None:
        return None


class SparseAttention:
    """Block sparse attention with one configuration.

    With top-k on a grid that the key chunks divide, the density follows from the configuration alone. If it depends on
    the data (a cdf threshold, or smaller blocks at the edge), it is summed on the device and read once, after the
    generation: a read per layer would stop the GPU each time.

    observer: called after every attention call; it changes nothing.
    """

    def __init__(self, work: Workload, observer: Observer | None = None) -> None:
        """work: with BSA."""
        assert work.bsa is not None and work.blocks is not None
        self._config, self._plan, self._layouts = work.bsa, work.blocks, layouts_of(work, work.bsa)
        q_layout, k_layout = self._layouts
        unlike = q_layout.ragged and self._plan.first is not None  # two densities, weighted by tokens
        self._measured = self._plan.kept is None or k_layout.ragged or unlike
        self._observer = observer
        self._calls = 0
        self._dense_calls = 0
        self._heads = 0  # of all rows of the batch that a call sees
        self._sums: Tensor | float = 0.0  # fp64 [2] on the device: density and blocks kept, summed over sparse calls

    def layers(self, depth: int, dense_layers: int, kept: KeptSelections) -> list[Attend]:
        """The attention of each layer in one step (see `BSAConfig.dense_layers_at`)."""
        return [self._dense if layer < dense_layers else partial(self._sparse, layer, kept) for layer in range(depth)]

    def _sparse(
        self, layer: int, kept: KeptSelections, q: Tensor, k: Tensor, v: Tensor, grid: Grid, conditioning: int = 0
    ) -> Tensor:
        out, selection = block_sparse_attention(
            q, k, v, grid, self._config, conditioning=conditioning, selection=kept.of(layer), return_selection=True
        )
        kept.keep(layer, selection)
        self.observe(q, k, selection)
        return out

    def _dense(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, conditioning: int = 0) -> Tensor:
        out = attend_dense(q, k, v, grid, conditioning)
        self.observe(q, k, None)
        return out

    def observe(self, q: Tensor, k: Tensor, selection: BlockSelection | None) -> None:
        """Count what a forward attended to, None for everything; q and k as its observer expects them."""
        if selection is None:
            self._dense_calls += 1
        else:
            self._calls += 1
            self._heads = selection.counts[..., 0].numel()
            if self._measured:
                density = token_density(selection, *self._layouts).mean()
                kept = selection.counts[..., -self._plan.q_blocks.volume :]  # of the frames that are made
                self._sums = self._sums + torch.stack([density, kept.double().mean()])
        if self._observer is not None:
            self._observer(q, k, self._everything(q) if selection is None else selection)

    def share(self, ranks: Ranks) -> None:
        """Make what was measured that of all ranks. All of them call it after the last step."""
        if self._measured and self._calls:
            self._sums = ranks.mean(torch.as_tensor(self._sums), self._heads)

    def _everything(self, q: Tensor) -> BlockSelection:
        """All key blocks that a query block may see for each of them, without the memory for it."""
        q_layout, k_layout = self._layouts
        k_blocks, shape = k_layout.blocks.volume, (*q.shape[:2], q_layout.blocks.volume)
        indices = torch.arange(k_blocks, dtype=torch.int32, device=q.device).expand(*shape, k_blocks)
        counts = indices.new_full(shape[-1:], k_blocks)
        if q_layout.lead:
            counts[: q_layout.first.blocks.volume] = k_layout.first.blocks.volume
        return BlockSelection(indices, counts.expand(shape))

    def _means(self) -> list[float]:
        means: list[float] = torch.as_tensor(self._sums / self._calls).tolist()
        return means

    def density(self) -> float:
        """Computed query-key token pairs over all pairs. Waits for the device where it was measured."""
        if not self._calls:
            return 1.0
        known = None if self._measured else self._plan.density
        sparse = self._means()[0] if known is None else known
        return (self._dense_calls + self._calls * sparse) / (self._dense_calls + self._calls)

    def blocks_kept(self) -> float:
        """Key blocks per query block where attention was sparse, a mean where it was measured."""
        if self._plan.kept is None and self._calls:
            return self._means()[1]
        return float(self._plan.kept or self.blocks_total())

    def blocks_total(self) -> int:
        return self._plan.k_blocks.volume


def layouts_of(work: Workload, config: BSAConfig) -> tuple[BlockLayout, BlockLayout]:
    """The blocks of the queries and of the keys in a denoising step."""
    queries, keys = (BlockLayout(work.grid, chunk, work.conditioning) for chunk in (config.chunk_q, config.chunk_k))
    return queries.rest if work.cached else queries, keys


def token_density(selection: BlockSelection, q_layout: BlockLayout, k_layout: BlockLayout) -> Tensor:
    """Selected query-key token pairs over all that may be, fp64 [..., H] for a selection of [..., H, NQ, S]."""
    device = selection.counts.device
    keys = k_layout.sizes(device)[selection.indices.long()]  # tokens of each listed block
    listed = torch.arange(keys.shape[-1], device=device) < selection.counts[..., None]
    pairs = (keys * listed).sum(-1).double() @ q_layout.sizes(device).double()
    possible = q_layout.rest.grid.volume * k_layout.grid.volume
    if q_layout.lead:
        possible += q_layout.first.grid.volume ** 2
    return pairs / possible


def attention_for(work: Workload, observer: Observer | None = None) -> DenseAttention | SparseAttention:
    """Make the attention of one generation. observer: called after every call of a sparse one."""
    return DenseAttention() if work.bsa is None else SparseAttention(work, observer)
