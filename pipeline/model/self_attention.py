"""The self-attention of one generation, dense or block sparse, and the share of token pairs that it computed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bsa import BlockLayout, BlockSelection, BSAConfig, Grid, block_sparse_attention
from pipeline.model.forward import attend_dense
from pipeline.request.workload import Workload

# (q, k, selection) of every call; the tensors are those that `block_sparse_attention` takes and returns
Observer = Callable[[Tensor, Tensor, BlockSelection], None]


class DenseAttention:
    """Full attention. It is an `Attend` for `longcat_forward`."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> Tensor:
        return attend_dense(q, k, v, grid)

    def density(self) -> float:
        return 1.0

    def blocks_kept(self) -> None:
        return None

    def blocks_total(self) -> None:
        return None


class SparseAttention:
    """Block sparse attention with one configuration. It is an `Attend` for `longcat_forward`.

    With top-k on a grid that the key chunks divide, the density follows from the configuration alone. If it depends on
    the data (a cdf threshold, or smaller blocks at the edge), it is summed on the device and read once, after the
    generation: a read per layer would stop the GPU each time.

    observer: called after every attention call; it changes nothing.
    """

    def __init__(self, config: BSAConfig, grid: Grid, observer: Observer | None = None) -> None:
        self._config = config
        self._plan = config.blocks(grid)
        self._layouts = BlockLayout(grid, config.chunk_q), BlockLayout(grid, config.chunk_k)
        self._measured = self._plan.kept is None or self._layouts[1].ragged
        self._observer = observer
        self._calls = 0
        self._sums: Tensor | float = 0.0  # fp64 [2] on the device: sums of density and of blocks kept over all calls

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> Tensor:
        out, selection = block_sparse_attention(q, k, v, grid, self._config, return_selection=True)
        self.observe(q, k, selection)
        return out

    def observe(self, q: Tensor, k: Tensor, selection: BlockSelection) -> None:
        """Count a selection that another forward pass made. q, k: as the observer expects them."""
        if self._measured:
            self._calls += 1
            density = token_density(selection, *self._layouts).mean()
            self._sums = self._sums + torch.stack([density, selection.counts.double().mean()])
        if self._observer is not None:
            self._observer(q, k, selection)

    def _means(self) -> list[float]:
        means: list[float] = torch.as_tensor(self._sums / self._calls).tolist()
        return means

    def density(self) -> float:
        """Computed query-key token pairs over all pairs. Waits for the device if it was measured."""
        known = None if self._measured else self._plan.density
        return self._means()[0] if known is None else known

    def blocks_kept(self) -> float:
        """Key blocks kept per query block; the mean over all calls if it was measured."""
        return self._means()[1] if self._plan.kept is None else float(self._plan.kept)

    def blocks_total(self) -> int:
        return self._plan.k_blocks.volume


def token_density(selection: BlockSelection, q_layout: BlockLayout, k_layout: BlockLayout) -> Tensor:
    """Selected query-key token pairs over all pairs, fp64 [..., H] for a selection of [..., H, NQ, S]."""
    device = selection.counts.device
    keys = k_layout.sizes(device)[selection.indices.long()]  # tokens of each listed block
    listed = torch.arange(keys.shape[-1], device=device) < selection.counts[..., None]
    pairs = (keys * listed).sum(-1).double() @ q_layout.sizes(device).double()
    return pairs / q_layout.grid.volume**2


def attention_for(work: Workload, observer: Observer | None = None) -> DenseAttention | SparseAttention:
    """Make the attention of one generation. observer: called after every call of a sparse one."""
    return DenseAttention() if work.bsa is None else SparseAttention(work.bsa, work.grid, observer)
