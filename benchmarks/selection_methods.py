"""Tries methods of selection that are not part of the library, written out with explicit masks, on the embedded model.

    python benchmarks/selection_methods.py --device cuda       # writes benchmarks/results/selection_methods.json
    python benchmarks/selection_methods.py --smoke             # one prompt, one step, on the CPU

Every method keeps the same number of key blocks in total, in blocks of 4x4x4. Videos are compared with the dense one of
the same prompt and seed. docs/quality.md has the table and says which methods were taken up:

* means, cells: what `bsa` has. "exact" ranks by the true attention mass, the best that any ranking of blocks can know.
* "votes by means": the denominator of each query cell comes from the means of key blocks, an eighth of the work.
* "kept for N steps": a selection is used in N steps in a row (DFSAttn, arXiv 2605.23445).
* "budgets": heads of a layer keep different numbers of blocks, by a profile of other prompts (SVOO, arXiv 2603.18636).
* "tail": the blocks left out count by their means (Sol-Attn, arXiv 2607.24027).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import quality
import torch
from quality import Maker, held_out_scenes
from quality_metrics import compare, interval
from torch import Tensor

from bsa import BlockLayout, Grid
from bsa.cells import cell_scores, cells_of, pool_cells
from pipeline.transformer.forward import attend_dense

RESULTS = Path(__file__).parent / "results" / "selection_methods.json"
CHUNK, SPARSITIES = Grid(4, 4, 4), (0.75, 0.9375)
PROFILE_PROMPTS = 4  # of the last prompts; the others are compared

# Masses of block pairs, [B, H, NQ, NK], from queries and keys in blocks, [B, H, N, C, D]
Scores = Callable[[Tensor, Tensor, BlockLayout, float], Tensor]


def by_means(q: Tensor, k: Tensor, layout: BlockLayout, scale: float) -> Tensor:
    return (scale * layout.pool(q) @ layout.pool(k).mT).softmax(-1)


def by_cells(q: Tensor, k: Tensor, layout: BlockLayout, scale: float) -> Tensor:
    return cell_scores(pool_cells(q, layout), pool_cells(k, layout), layout, layout, scale).exp()


def by_cells_and_means(q: Tensor, k: Tensor, layout: BlockLayout, scale: float) -> Tensor:
    cells = scale * pool_cells(q, layout)  # [B, H, N, K, D]
    denominators = (cells.flatten(2, 3) @ layout.pool(k).mT).logsumexp(-1, keepdim=True)
    masses = (cells.flatten(2, 3) @ pool_cells(k, layout).flatten(2, 3).mT - denominators).exp()
    masses = masses.unflatten(-1, (layout.blocks.volume, -1)).sum(-1).unflatten(2, (layout.blocks.volume, -1))
    return (cells_of(layout, q.device).votes[..., None] * masses).sum(3)


def exactly(q: Tensor, k: Tensor, layout: BlockLayout, scale: float) -> Tensor:
    masses = (scale * q.flatten(2, 3).float() @ k.flatten(2, 3).float().mT).softmax(-1)
    return masses.unflatten(-1, (layout.blocks.volume, -1)).sum(-1).unflatten(2, (layout.blocks.volume, -1)).mean(3)


@dataclass(frozen=True)
class Method:
    scores: Scores
    steps: int = 1  # steps that a selection is used for
    budgets: bool = False
    tail: bool = False


METHODS = {
    "means": Method(by_means),
    "cells": Method(by_cells),
    "cells, votes by means": Method(by_cells_and_means),
    "cells, kept for 2 steps": Method(by_cells, steps=2),
    "cells, kept for 4 steps": Method(by_cells, steps=4),
    "cells, budgets": Method(by_cells, budgets=True),
    "cells, tail": Method(by_cells, tail=True),
    "exact": Method(exactly),
    "exact, budgets": Method(exactly, budgets=True),
}


class Attention:
    """Attention of one batch of videos by a method: an `Attend` that is called layer by layer, step by step.

    kept: blocks that each query block of a head keeps, [layers, heads].
    """

    def __init__(self, method: Method, kept: Tensor) -> None:
        self.method, self.kept, self.calls = method, kept, 0
        self.masks: dict[int, Tensor] = {}
        self.wanted = torch.zeros(kept.shape)  # of all blocks of a layer, with one ranking for all of its heads

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, conditioning: int = 0) -> Tensor:
        step, layer = divmod(self.calls, len(self.kept))
        self.calls += 1
        layout, scale = BlockLayout(grid, CHUNK), q.shape[-1] ** -0.5
        q, k, v = (layout.to_blocks(x) for x in (q, k, v))
        if step % self.method.steps == 0:
            self.masks[layer] = self._select(layer, self.method.scores(q, k, layout, scale))
        chosen = self.masks[layer]
        size = layout.chunk.volume
        mask = chosen.repeat_interleave(size, 2).repeat_interleave(size, 3)
        q, keys, values = (x.flatten(2, 3) for x in (q, k, v))
        if self.method.tail:
            scores = (scale * q.float() @ keys.float().mT).masked_fill_(~mask, float("-inf"))
            tail = scale * q.float() @ layout.pool(k).mT + layout.sizes(q.device).log()
            tail = tail.masked_fill_(chosen.repeat_interleave(size, 2), float("-inf"))
            shares = torch.cat([scores, tail], -1).softmax(-1)
            out = (shares @ torch.cat([values.float(), layout.pool(v)], 2)).to(v.dtype)
        else:
            out = torch.nn.functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scale)
        return layout.from_blocks(out.view_as(v))

    def _select(self, layer: int, masses: Tensor) -> Tensor:
        """The blocks kept, [B, H, NQ, NK]."""
        together = masses.transpose(1, 2).flatten(2)  # [B, NQ, H * NK]
        best = together.topk(int(self.kept[layer].sum()), dim=-1).indices // masses.shape[-1]
        self.wanted[layer] += best.flatten().bincount(minlength=masses.shape[1]).cpu()
        rank = masses.argsort(-1, descending=True).argsort(-1)
        return rank < self.kept[layer].to(masses.device)[:, None, None]


def budgets(wanted: Tensor, kept: int, most: int) -> Tensor:
    """Blocks for each head, [layers, heads]: the layer's total in proportion to what the heads asked for, 1 or more."""
    total = kept * wanted.shape[1]
    counts = (total * wanted / wanted.sum(-1, keepdim=True)).round().clamp(1, most)
    for row in counts:  # rounding may have changed the total
        while (left := int(total - row.sum())) != 0:
            place = row.argmin() if left > 0 else row.argmax()
            row[place] += 1 if left > 0 else -1
    return counts.long()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--smoke", action="store_true", help="one prompt and one step")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    began = time.monotonic()
    if args.smoke:
        quality.STEPS, args.prompts, args.batch = 1, 1, 1
    maker = Maker(args.device)
    blocks = maker.model.transformer.blocks
    heads, total = blocks[0].self_attn.num_heads, 64
    scenes = held_out_scenes(args.prompts + PROFILE_PROMPTS)
    captions = [scene.caption for scene in scenes]
    figures: dict[tuple[float, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    even = {s: torch.full((len(blocks), heads), max(1, int((1 - s) * total)), dtype=torch.long) for s in SPARSITIES}
    profiles = {}
    others = slice(args.prompts, None)
    for sparsity, kept in even.items():
        for name in ("cells, budgets", "exact, budgets"):
            attention = Attention(replace(METHODS[name], budgets=False), kept)
            maker.frames(captions[others], list(range(len(captions)))[others], attention)
            profiles[sparsity, name] = budgets(attention.wanted, int(kept[0, 0]), total)
    for first in range(0, args.prompts, args.batch):
        seeds = list(range(first, min(first + args.batch, args.prompts)))
        some = [captions[seed] for seed in seeds]
        dense = maker.frames(some, seeds, attend_dense)
        for sparsity, kept in even.items():
            for name, method in METHODS.items():
                video = maker.frames(some, seeds, Attention(method, profiles.get((sparsity, name), kept)))
                for figure, values in compare(video, dense).items():
                    figures[sparsity, name][figure] += values
        print(f"{seeds[-1] + 1} of {args.prompts} prompts, {time.monotonic() - began:.0f} s", flush=True)
    rows = []
    for (sparsity, name), found in figures.items():
        gains = [a - b for a, b in zip(found["psnr"], figures[sparsity, "cells"]["psnr"], strict=True)]
        means = {figure: round(statistics.fmean(values), 4) for figure, values in found.items()}
        rows.append({"sparsity": sparsity, "method": name, **means, "worst_psnr": round(min(found["psnr"]), 2)})
        rows[-1] |= {"gain": round(statistics.fmean(gains), 2), "gain_interval": [round(x, 2) for x in interval(gains)]}
        print(f"{rows[-1]['psnr']:6.2f} dB, worst {rows[-1]['worst_psnr']:6.2f}  {sparsity} {name}")
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if maker.device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - began, 1),
        "prompts": args.prompts,
        "rows": rows,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
