"""Times how block sparse attention selects: means against cells, and the whole operation with each.

    python benchmarks/selection.py            # on a GPU; writes benchmarks/results/selection.json
    python benchmarks/selection.py --smoke    # tiny, on the CPU

"pool" makes the means or cells of queries and keys, which `fast_forward` gets from its norm kernel for means; "select"
scores and picks; "operation" is all of it with the attention, given the means. agreement: share of the selected block
pairs that float64 scores select too, on one head; random inputs are the worst case, because most of their scores are
nearly equal. "forward" is a pass of the transformer of real size with random weights.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from attention import GRIDS, REAL, SMOKE
from attention_case import Case
from dit import Models, inputs
from gpu import Rows, arguments, device_for, milliseconds, profiled

from bsa import BlockSelection, BSAConfig, Grid, block_order_attention
from bsa.cells import cell_scores, pool_cells
from bsa.selection import pool, select_pooled
from pipeline.transformer.fast_forward import fast_forward


def pooled_of(case: Case, scores: str) -> tuple[torch.Tensor, torch.Tensor]:
    q, k = case.q.transpose(1, 2), case.k.transpose(1, 2)
    if scores == "mean" or not case.q.is_cuda:
        config = replace(case.config, selection=scores)
        first, second = (pool(case.layout.blocks_from_order(x), case.layout, config) for x in (case.q, case.k))
        return first, second
    from bsa.kernels.cell_scores import pool_cells_in_order

    return pool_cells_in_order(q, case.layout), pool_cells_in_order(k, case.layout)


def exact_mask(case: Case, scores: str) -> torch.Tensor:
    """Selected pairs of the last head by float64 scores."""
    q, k = (case.layout.blocks_from_order(x[:, :, -1:]).double() for x in (case.q, case.k))
    if scores == "cells":
        cells = (pool_cells(x, case.layout) for x in (q, k))
        logits = cell_scores(*cells, case.layout, case.layout, case.scale)
    else:
        logits = case.scale * (case.layout.pool(q) @ case.layout.pool(k).mT)
        logits += case.layout.sizes(logits.device).log()
    kept = case.selection.indices.shape[-1]
    return torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, logits.topk(kept, dim=-1).indices, True)


def measure(case: Case, scores: str, part: str) -> dict:
    config, fused = replace(case.config, selection=scores), case.q.is_cuda
    if part == "pool":
        return milliseconds(lambda: pooled_of(case, scores), case.device)
    if part == "select":
        pooled = pooled_of(case, scores)

        def run() -> BlockSelection:
            return select_pooled(*pooled, case.layout, case.layout, config, case.scale, fused=fused)

        ours, exact = run().mask(case.layout.blocks.volume)[:, -1:], exact_mask(case, scores)
        agreement = float((ours & exact).sum() / exact.sum())
        return {**milliseconds(run, case.device), "agreement": agreement}
    pooled = pooled_of(case, scores)  # the norm before the attention makes them
    return milliseconds(
        lambda: block_order_attention(case.q, case.k, case.v, case.layout, config, pooled=pooled), case.device
    )


def measure_forward(models: Models, grid: Grid, bsa: BSAConfig | None, device: torch.device) -> dict:
    model, _ = models("bf16")
    given = inputs(model, grid, device)
    layers = 0 if bsa is None else bsa.dense_layers
    return profiled(lambda: fast_forward(model, *given, bsa, dense_layers=layers), device, repeats=3, limit=20)


def main() -> None:
    parser = arguments(__doc__, "selection")
    args = parser.parse_args()
    device = device_for(parser, args.smoke)
    rows = Rows(args, device)
    for grid in [Grid(4, 7, 8)] if args.smoke else GRIDS:
        case = Case(grid, Grid(4, 4, 4), 0.5 if args.smoke else 0.9375, *(SMOKE if args.smoke else REAL), device)
        for scores in ("mean", "cells"):
            for part in ("pool", "select", "operation"):
                key = {"grid": str(grid), "what": f"{scores}, {part}"}
                rows.measure(key, lambda case=case, scores=scores, part=part: measure(case, scores, part))
    models = Models(device, args.smoke)
    for grid in [Grid(5, 6, 8)] if args.smoke else GRIDS[:2]:
        sparse = BSAConfig(0.5 if args.smoke else 0.9375)
        cells = replace(sparse, selection="cells")
        kinds = {"mean": sparse, "cells": cells, "cells + 2 dense layers": replace(cells, dense_layers=2)}
        for name, bsa in (kinds | {"dense": None}).items():
            key = {"grid": str(grid), "what": f"{name}, forward"}
            rows.measure(key, lambda grid=grid, bsa=bsa: measure_forward(models, grid, bsa, device))
    rows.finish()


if __name__ == "__main__":
    main()
