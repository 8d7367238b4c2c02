"""Measures how much each layer loses with sparse attention: recall and output error along dense generations."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable

from torch import Tensor

from benchmarks.quality_metrics import block_masses, output_error, recall
from bsa import BlockLayout, BSAConfig, Grid, block_sparse_attention
from pipeline.transformer.forward import Attend, attend_dense


class Probe:
    """Dense attention of one layer, beside which every setting attends to the same queries, keys and values."""

    def __init__(self, configs: dict[str, BSAConfig]) -> None:
        self.configs = configs
        self._figures: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, conditioning: int) -> Tensor:
        dense = attend_dense(q, k, v, grid, conditioning)
        chunks = {config.chunk_k for config in self.configs.values()}
        masses = {chunk: block_masses(q, k, BlockLayout(grid, chunk)) for chunk in chunks}
        for name, config in self.configs.items():
            out, selection = block_sparse_attention(q, k, v, grid, config, return_selection=True)
            kept = recall(masses[config.chunk_k], selection, BlockLayout(grid, config.chunk_q))
            self._figures[name].append((kept, output_error(out, dense)))
        return dense

    def means(self, name: str) -> dict[str, float]:
        """Recall and output error of a setting, means over the calls so far."""
        kept, error = zip(*self._figures[name], strict=True)
        return {"recall": round(statistics.fmean(kept), 4), "error": round(statistics.fmean(error), 4)}


def probe(
    generate: Callable[[list[Attend]], object], depth: int, configs: dict[str, BSAConfig]
) -> dict[str, dict[str, list[float]]]:
    """{setting: {"recall" and "error": for each layer}}, for the settings without dense steps and layers.

    generate: makes videos with the attention of each layer, in every step. depth: number of layers.
    """
    plain = {name: config for name, config in configs.items() if not (config.dense_steps or config.dense_layers)}
    layers = [Probe(plain) for _ in range(depth)]
    generate([*layers])
    return {name: {what: [one.means(name)[what] for one in layers] for what in ("recall", "error")} for name in plain}
