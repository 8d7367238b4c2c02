"""A case of the attention benchmarks: its inputs, its selection, and a check of results."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from bsa import BSAConfig
from bsa.layout import nested_layouts
from bsa.selection import select_pooled


class Case:
    """q, k, v in block order and in raster order, the selection, and the error of a result."""

    def __init__(self, grid, chunk, sparsity, heads, dim, dtype, device, chunk_k=None):
        self.grid, self.config = grid, BSAConfig(sparsity, None, chunk, chunk_k or chunk)
        self.layout, self.k_layout = nested_layouts(grid, chunk, chunk_k or chunk)
        torch.manual_seed(0)
        shape = (1, grid.volume, heads, dim)
        self.q, self.k, self.v = (torch.randn(shape, device=device, dtype=dtype) for _ in range(3))
        self.q *= 2  # spreads the scores, because nearly equal weights would hide a wrong block
        self.scale, self.device = dim**-0.5, device
        both = (self.q, self.layout), (self.k, self.k_layout)
        self.means = tuple(layout.pool(layout.blocks_from_order(x)) for x, layout in both)
        self.selection = select_pooled(*self.means, self.layout, self.k_layout, self.config, self.scale)
        sizes, key_sizes = (layout.sizes(device).double() for layout in (self.layout, self.k_layout))
        self.pairs = float((key_sizes[self.selection.indices.long()].sum(-1) * sizes).sum())
        self.flops = 4 * dim * self.pairs

    def raster(self):
        back = self.layout.place_of_token(self.device)
        return [x[:, back].transpose(1, 2).contiguous() for x in (self.q, self.k, self.v)]

    def error(self, out, blocks=16):
        """Relative error of ``out`` [1, S, H, D] in block order against float64, on some blocks of two heads."""
        (starts, sizes), (key_starts, key_sizes) = (
            (layout.starts(self.device).tolist(), layout.sizes(self.device).tolist())
            for layout in (self.layout, self.k_layout)
        )
        picked = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(0))[:blocks].tolist()
        wrong = right = 0.0
        for head in (0, self.q.shape[2] - 1):
            for block in {*picked, len(sizes) - 1}:
                kept = self.selection.indices[0, head, block].tolist()
                keys = torch.cat([torch.arange(key_starts[b], key_starts[b] + key_sizes[b]) for b in kept]).to(
                    self.device
                )
                rows = slice(starts[block], starts[block] + sizes[block])
                q, k, v = (x[0, part, head].double() for x, part in ((self.q, rows), (self.k, keys), (self.v, keys)))
                exact = (self.scale * q @ k.T).softmax(-1) @ v
                wrong += float((out[0, rows, head].double() - exact).square().sum())
                right += float(exact.square().sum())
        return (wrong / right) ** 0.5
