"""Runs Triton kernels through Triton's interpreter on the CPU and prints one JSON line per case.

A program, not a test: test_bsa_triton.py starts it, because TRITON_INTERPRET must be set before Triton is
first imported in a process. Interpreted products are fp32 or fp16; in bf16 Triton 3.7's interpreter is wrong.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
os.environ["TORCHDYNAMO_DISABLE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from bsa import BlockLayout, BSAConfig, Grid, block_order_attention, block_sparse_attention
from bsa.layout import nested_layouts
from bsa.selection import pool, select_pooled
from bsa.variants import EIGHT_BIT_VARIANTS, VARIANTS, Tuning

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def random_qkv(shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator).to(dtype) for _ in range(3))


def relative_error(value, expected):
    return float((value.double() - expected.double()).norm() / expected.double().norm())


def with_nan_behind(x):
    """The same tensor in a buffer that goes on with NaN: a read past the last block shows in the output."""
    buffer = torch.full((x.numel() + 64 * x.shape[-1],), float("nan"), dtype=x.dtype)
    buffer[: x.numel()] = x.flatten()
    return buffer[: x.numel()].view_as(x)


def kernel_error(case):
    """Relative error of the operation's parts against the dense-mask reference in fp64 on the same selection."""
    from bsa.kernels.attend import attend_tokens
    from bsa.kernels.order import from_order, to_order
    from bsa.reference import masked_attention

    grid = Grid(*case["grid"])
    config = BSAConfig(case.get("sparsity"), case.get("cdf"), case["chunk_q"], case["chunk_k"])
    shape = (case.get("batch", 1), case.get("heads", 2), grid.volume, case["dim"])
    q, k, v = random_qkv(shape, DTYPES[case.get("dtype", "fp32")])
    q_layout, k_layout = BlockLayout(grid, config.chunk_q), BlockLayout(grid, config.chunk_k)
    (q_order, q_means), (k_order, k_means) = to_order(q, q_layout), to_order(k, k_layout)
    v_order, _ = to_order(v, k_layout, means=False)
    scale = case["dim"] ** -0.5
    selection = select_pooled(q_means, k_means, q_layout, k_layout, config, scale)
    k_order, v_order = with_nan_behind(k_order), with_nan_behind(v_order)
    poisoned = torch.full_like(q_order, float("nan"))
    attend_tokens(q_order, k_order, v_order, selection, q_layout, k_layout, scale, poisoned)
    expected = masked_attention(q.double(), k.double(), v.double(), selection, q_layout, k_layout, scale)
    return relative_error(from_order(poisoned, q_layout), expected)


def layout_error(case):
    """Largest difference of the one-pass order and means to those of the layout, for strided input of any dtype."""
    from bsa.kernels.order import from_order, to_order

    layout = BlockLayout(Grid(*case["grid"]), Grid(*case["chunk"]))
    x, _, _ = random_qkv((2, layout.grid.volume, 3, case["dim"]), DTYPES[case.get("dtype", "fp32")])
    x = x.transpose(1, 2)  # heads inside the tokens, as a projection leaves them
    ordered, means = to_order(x, layout)
    back = from_order(ordered, layout)
    pooled = layout.pool(layout.to_blocks(x))
    assert torch.equal(ordered, x[:, :, layout.order(x.device)]) and torch.equal(back, x)
    assert means.dtype == torch.float32 and to_order(x, layout, means=False)[1] is None
    return float((means - pooled).abs().max())


def order_error(case):
    """Relative error of a kernel variant on block order, heads inside the tokens, against the fp64 reference."""
    from bsa.kernels.attend import attend_tokens
    from bsa.reference import masked_attention

    grid, batch, heads, dim = Grid(*case["grid"]), case.get("batch", 1), case.get("heads", 2), case["dim"]
    config = BSAConfig(case.get("sparsity"), case.get("cdf"), case["chunk"], case.get("chunk_k", case["chunk"]))
    layout, k_layout = nested_layouts(grid, config.chunk_q, config.chunk_k)
    q, k, v = random_qkv((batch, grid.volume, heads, dim), torch.float32)
    scale = dim**-0.5
    means = (by.pool(by.blocks_from_order(x)) for x, by in ((q, layout), (k, k_layout)))
    selection = select_pooled(*means, layout, k_layout, config, scale, fused=case.get("fused", False))
    out = torch.full_like(q, float("nan"))
    tensors = (x.transpose(1, 2) for x in (q, with_nan_behind(k), with_nan_behind(v)))
    variant = VARIANTS[case["variant"]]
    attend_tokens(*tensors, selection, layout, k_layout, scale, out.transpose(1, 2), variant=variant)
    back = layout.place_of_token(q.device)
    raster = (x[:, back].transpose(1, 2).double() for x in (q, k, v))
    expected = masked_attention(*raster, selection, layout, k_layout, scale)
    return relative_error(out[:, back].transpose(1, 2), expected)


def eight_bits_error(case):
    """Relative error of the kernel in 8 bits against float64 attention of the numbers that its 8 bits stand for.

    Keys have a mean that is larger than what differs between them, as without a norm before the attention.
    """
    from bsa.kernels.attend import whole_blocks_first
    from bsa.kernels.eight_bits import attend_in_8_bits
    from bsa.kernels.quantise import quantise_rows, quantise_values
    from bsa.reference import masked_attention

    grid, batch, dim = Grid(*case["grid"]), case.get("batch", 1), case["dim"]
    config = BSAConfig(case["sparsity"], None, case["chunk"], case.get("chunk_k", case["chunk"]))
    layout, k_layout = nested_layouts(grid, config.chunk_q, config.chunk_k)
    variant, values = EIGHT_BIT_VARIANTS[case["variant"]], getattr(torch, case["values"])
    q, k, v = (x.transpose(1, 2) for x in random_qkv((batch, grid.volume, 2, dim), torch.float32))
    k += 4 * random_qkv((batch, 2, 1, dim), torch.float32, seed=1).__next__()
    means = (by.pool(by.blocks_from_order(x.transpose(1, 2))) for x, by in ((q, layout), (k, k_layout)))
    selection = select_pooled(*means, layout, k_layout, config, dim**-0.5)
    ordered = whole_blocks_first(selection, k_layout)
    out = torch.full((batch, grid.volume, 2, dim), float("nan")).transpose(1, 2)
    behind = with_nan_behind(q), with_nan_behind(k), with_nan_behind(v)
    attend_in_8_bits(*behind, ordered, layout, k_layout, dim**-0.5, out, variant=variant, values=values)

    def read(tiles, by, transposed=False):
        """The numbers that tiles stand for, [B, H, tokens, D], in fp64."""
        numbers = tiles.values.to(torch.float64 if tiles.values.dtype == torch.int8 else torch.float32).double()
        if transposed:
            numbers = numbers.mT * tiles.scales[:, :, None, None, None]
        else:
            numbers = numbers * tiles.scales[..., None, None]
        rows = numbers.flatten(3, 4)[..., :dim]  # [B, H, blocks, slots, D]
        true = torch.arange(rows.shape[3]) < by.sizes(rows.device)[:, None]
        assert not rows[:, :, ~true].any()
        return rows[:, :, true]

    tile_q, tile_k = variant.tiles(layout.chunk.volume, k_layout.chunk.volume)
    mean = k.mean(2, dtype=torch.float32)
    stands = [
        read(quantise_rows(q, layout, tile_q), layout),
        read(quantise_rows(k, k_layout, tile_k, mean=mean), k_layout) + mean[:, :, None],
        read(quantise_values(v, k_layout, tile_k, values), k_layout, transposed=True),
    ]
    # a rounding step of int8: half of the largest number of a tile over 127
    assert (stands[0] - q).abs().max() <= q.abs().max() / 254 * 1.01
    assert (stands[1] - k).abs().max() <= (k - mean[:, :, None]).abs().max() / 254 * 1.01
    back = layout.place_of_token(q.device)
    expected = masked_attention(*(x[:, :, back] for x in stands), selection, layout, k_layout, dim**-0.5)
    return relative_error(out[:, :, back], expected)


def top_k_error(case):
    """How many block pairs the fused top-k and the sorting one disagree on, and whether its lists are in order."""
    layout = BlockLayout(Grid(*case["grid"]), Grid(*case["chunk"]))
    scores = case.get("scores", "mean")
    config = BSAConfig(case["sparsity"], None, case["chunk"], case["chunk"], scores)
    if scores == "cells":
        q, k, _ = random_qkv((2, 2, layout.blocks.volume, layout.chunk.volume, 8), torch.float32)
        q, k = (pool(x, layout, config) for x in (q, k))
    else:
        q, k, _ = random_qkv((2, 2, layout.blocks.volume, 8), torch.float32)
    if case.get("ties"):
        q, k = q.sign(), k.sign()  # many equal scores
    expected = select_pooled(q, k, layout, layout, config, 0.25)
    got = select_pooled(q, k, layout, layout, config, 0.25, fused=True)
    sizes = layout.sizes(q.device)
    for row, count in zip(got.indices.flatten(0, 2), got.whole_counts.flatten(), strict=True):
        whole, cut = row[:count], row[count:]
        assert (sizes[whole] == layout.chunk.volume).all() and (sizes[cut] < layout.chunk.volume).all()
        assert (whole.diff() > 0).all() and (cut.diff() > 0).all()
    blocks = layout.blocks.volume
    if case.get("ties"):  # which of two equal blocks is kept is free; what is kept must weigh the same
        logits = 0.25 * (q @ k.mT) + sizes.log()
        kept = [(logits * chosen.mask(blocks)).sum(-1) for chosen in (got, expected)]
        return float((kept[0] - kept[1]).abs().max())
    return int((got.mask(blocks) != expected.mask(blocks)).sum())


def cells_error(case):
    """Largest relative error of pooled cells and of the masses of block pairs, against `bsa.cells` in fp64."""
    from bsa.cells import cell_scores, pool_cells
    from bsa.kernels.cell_scores import cell_masses, pool_cells_in_order

    grid, dim = Grid(*case["grid"]), case["dim"]
    layouts = BlockLayout(grid, Grid(*case["chunk_q"])), BlockLayout(grid, Grid(*case["chunk_k"]))
    q, k, _ = random_qkv((2, 2, grid.volume, dim), torch.float32)
    cells, exact, errors = [], [], []
    for x, layout in zip((q, k), layouts, strict=True):
        behind = with_nan_behind(x[:, :, layout.order(x.device)])
        cells.append(pool_cells_in_order(behind, layout))
        exact.append(pool_cells(layout.to_blocks(x.double()), layout))
        errors.append(relative_error(cells[-1], exact[-1]))
    masses = cell_masses(*cells, *layouts, dim**-0.5)
    errors.append(relative_error(masses, cell_scores(*exact, *layouts, dim**-0.5).exp()))
    assert (masses.sum(-1) - 1).abs().max() < 1e-5
    return max(errors)


def operation_error(case):
    """Relative error of both public operations against the reference with its own selection, or with a given one.

    With conditioning frames, also of the same without their queries.
    """
    grid, given = Grid(*case["grid"]), case.get("conditioning", 0)
    config = BSAConfig(0.6, None, case["chunk_q"], case["chunk_k"], case.get("scores", "cells"))
    q, k, v = random_qkv((case.get("batch", 1), 2, grid.volume, 16), torch.float32)
    expected = block_sparse_attention(q, k, v, grid, config, conditioning=given, backend="reference")
    out, used = block_sparse_attention(
        q, k, v, grid, config, conditioning=given, backend="triton", return_selection=True
    )
    errors, first = [relative_error(out, expected)], given * grid.h * grid.w
    again = block_sparse_attention(-q, k, v, grid, config, conditioning=given, backend="triton", selection=used)
    oracle = block_sparse_attention(-q, k, v, grid, config, conditioning=given, backend="reference", selection=used)
    errors.append(relative_error(again, oracle))
    if first:
        out = block_sparse_attention(q[:, :, first:], k, v, grid, config, conditioning=given, backend="triton")
        errors.append(relative_error(out, expected[:, :, first:]))
    if case.get("eight_bits"):
        in_8_bits = block_sparse_attention(
            q, k, v, grid, config, conditioning=given, backend="triton", selection=used, eight_bits=True
        )
        assert 1e-3 < relative_error(in_8_bits, expected) < 0.12  # the interpreter cuts e4m3 numbers off
    if config.chunk_q == config.chunk_k:
        layout = BlockLayout(grid, config.chunk_q, given)
        q, k, v = (x[:, :, layout.order(x.device)].transpose(1, 2).contiguous() for x in (q, k, v))
        tuning = Tuning(VARIANTS[case["variant"]], True) if "variant" in case else None
        expected = expected[:, :, layout.order(q.device)].transpose(1, 2)
        out = block_order_attention(q, k, v, layout, config, backend="triton", tuning=tuning)
        errors.append(relative_error(out, expected))
        if case.get("eight_bits"):
            out = block_order_attention(q, k, v, layout, config, backend="triton", eight_bits=True)
            assert torch.equal(out, in_8_bits[:, :, layout.order(q.device)].transpose(1, 2))
        if first:
            out = block_order_attention(q[:, first:], k, v, layout, config, backend="triton", tuning=tuning)
            errors.append(relative_error(out, expected[:, first:]))
    return max(errors)


def upstream_error(case):
    """Relative error of our op against FastVideo's flash_attn_bsa_3d, both interpreted."""
    folder = importlib.util.find_spec("fastvideo").submodule_search_locations[0]
    folder = Path(folder) / "third_party/longcat_video/block_sparse_attention"
    # Loaded beside its package: importing fastvideo itself takes ten seconds and needs none of this.
    spec = importlib.util.spec_from_file_location("upstream", folder / "__init__.py")
    package = importlib.util.module_from_spec(spec)
    sys.modules["upstream"] = package
    spec.loader.exec_module(package)
    interface = importlib.import_module("upstream.bsa_interface")

    grid = Grid(*case["grid"])
    config = BSAConfig(case["sparsity"], None, case["chunk_q"], case["chunk_k"])
    q, k, v = random_qkv((1, 2, grid.volume, case["dim"]), torch.float32)
    expected = interface.flash_attn_bsa_3d(q, k, v, grid, grid, **config.to_bsa_params())
    return relative_error(block_sparse_attention(q, k, v, grid, config, backend=case["backend"]), expected)


if __name__ == "__main__":
    run = {"kernel": kernel_error, "upstream": upstream_error, "order": order_error}
    run |= {"eight-bits": eight_bits_error}
    run |= {"top-k": top_k_error, "layout": layout_error, "cells": cells_error, "operation": operation_error}
    for line in sys.stdin:
        case = json.loads(line)
        print(json.dumps({"id": case["id"], "error": run[case["kind"]](case)}), flush=True)
