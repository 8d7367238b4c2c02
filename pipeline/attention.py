"""The self-attention of one generation: dense or block sparse, and the share of token pairs it worked on."""

from __future__ import annotations

import torch
from torch import Tensor

from bsa import BlockLayout, BlockSelection, BSAConfig, Grid, block_sparse_attention

from .forward import attend_dense
from .request import VideoRequest


class DenseAttention:
    """Full attention; an `Attend` for `longcat_forward`."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> Tensor:
        return attend_dense(q, k, v, grid)

    def density(self) -> float:
        return 1.0

    def blocks_kept(self) -> None:
        return None

    def blocks_total(self) -> None:
        return None


class SparseAttention:
    """Block sparse attention with one configuration; an `Attend` for `longcat_forward`.

    With top-k on a grid that the key chunks divide, the density follows from the configuration alone.
    Where the data decides (a cdf threshold, or edge blocks of other sizes), it is summed up on the device
    and read once, after the generation: reading it per layer would stop the GPU each time.
    """

    def __init__(self, config: BSAConfig, grid: Grid) -> None:
        self._config = config
        self._plan = config.blocks(grid)
        self._layouts = BlockLayout(grid, config.chunk_q), BlockLayout(grid, config.chunk_k)
        self._measured = self._plan.kept is None or self._layouts[1].ragged
        self._calls = 0
        self._sums: Tensor | float = 0.0  # fp64 [2] on the device: density and blocks kept, summed over calls

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> Tensor:
        if not self._measured:
            return block_sparse_attention(q, k, v, grid, self._config)
        out, selection = block_sparse_attention(q, k, v, grid, self._config, return_selection=True)
        self._calls += 1
        self._sums = self._sums + self._measure(selection)
        return out

    def _measure(self, selection: BlockSelection) -> Tensor:
        q_layout, k_layout = self._layouts
        device = selection.counts.device
        tokens = q_layout.grid.volume
        keys = k_layout.sizes(device)[selection.indices.long()]  # [B, H, NQ, S] tokens of each listed block
        listed = torch.arange(keys.shape[-1], device=device) < selection.counts[..., None]
        pairs = (keys * listed).sum(-1).double() @ q_layout.sizes(device).double()  # [B, H]
        return torch.stack([pairs.mean() / tokens**2, selection.counts.double().mean()])

    def _means(self) -> list[float]:
        return (self._sums / self._calls).tolist()

    def density(self) -> float:
        """Computed query-key token pairs over all pairs. Waits for the device where it was measured."""
        return self._means()[0] if self._measured else self._plan.density

    def blocks_kept(self) -> float:
        """Key blocks per query block, a mean over everything where it was measured."""
        return self._means()[1] if self._plan.kept is None else float(self._plan.kept)

    def blocks_total(self) -> int:
        return self._plan.k_blocks.volume


def attention_for(request: VideoRequest) -> DenseAttention | SparseAttention:
    """The attention of one generation; see `VideoRequest.bsa_status` for the choice."""
    active, _ = request.bsa_status()
    return SparseAttention(request.bsa, request.grid) if active else DenseAttention()
