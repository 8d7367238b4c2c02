"""Attention by products in bfloat16 on a CPU, against exact attention in fp64 on the same numbers."""

import math

import pytest
import torch

from bsa import BSAConfig, Grid, block_sparse_attention, full_attention
from bsa import products as module


def tensors(groups, rows, keys, dim, gain=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(groups, n, dim, generator=generator) for n in (rows, keys, keys))
    return (q * gain).bfloat16(), k.bfloat16(), v.bfloat16()


def exact(q, k, v, scale, mask=None):
    scores = scale * q.double() @ k.double().mT
    scores = scores if mask is None else scores.masked_fill(~mask, -math.inf)
    return scores.softmax(-1) @ v.double()


def distance(out, expected):
    return float((out.double() - expected).norm() / expected.norm())


SIZES = [
    pytest.param(3, 37, 129, 24, id="odd"),
    pytest.param(1, 1, 1, 16, id="one-key"),
    pytest.param(5, 64, 7, 64, id="fewer-keys-than-the-sample"),
    pytest.param(2, 300, 700, 64, id="several-steps"),
]


@pytest.mark.parametrize(("groups", "rows", "keys", "dim"), SIZES)
def test_is_attention(monkeypatch, groups, rows, keys, dim):
    monkeypatch.setattr(module, "SCORE_BYTES", 1 << 18)
    monkeypatch.setattr(module, "LEAST_ROWS", 128)
    q, k, v = tensors(groups, rows, keys, dim)
    out = module.attend_by_products(q, k, v, 0.3)
    assert out.shape == q.shape and out.dtype == torch.bfloat16 and out.is_contiguous()
    # Weights and result are rounded to 2^-9; PyTorch's own attention is as far off.
    assert distance(out, exact(q, k, v, 0.3)) < 6e-3


def test_masked_keys_do_not_count():
    q, k, v = tensors(4, 20, 96, 32)
    mask = torch.arange(96) < torch.tensor([96, 1, 50, 77])[:, None, None]
    k, v = k.masked_fill(~mask.mT, 50.0), v.masked_fill(~mask.mT, 1e4)  # would rule if they counted
    out = module.attend_by_products(q, k, v, 0.2, mask)
    assert distance(out, exact(q, k, v, 0.2, mask)) < 6e-3


def test_large_scores_are_not_rounded():
    """Scores near 60 are multiples of 0.25 in bfloat16; without the shift the distance is 6e-2."""
    q, k, v = tensors(2, 64, 512, 64, gain=2.0)
    k = (k + 3 * q.mean(1, keepdim=True)).bfloat16()
    q = (q + 3).bfloat16()
    k = (k + 2.5).bfloat16()
    scores = q.double() @ k.double().mT / 8
    assert scores.amax() > 60
    assert distance(module.attend_by_products(q, k, v, 1 / 8), exact(q, k, v, 1 / 8)) < 2e-2


def test_full_attention_takes_them_in_bfloat16_only():
    q, k, v = (x.view(1, 2, *x.shape[1:]) for x in tensors(2, 40, 50, 32))
    assert module.takes_products(q, k, v)
    assert not module.takes_products(q.float(), k.float(), v.float())
    assert not module.takes_products(q, k, v.requires_grad_())
    with torch.no_grad():
        assert module.takes_products(q, k, v)
        out = full_attention(q.transpose(1, 2).contiguous().transpose(1, 2), k, v)
    expected = exact(q[0], k[0], v[0].detach(), 1 / math.sqrt(32))
    assert out.shape == q.shape and distance(out[0], expected) < 6e-3


@pytest.mark.parametrize("grid", [pytest.param(Grid(4, 8, 8), id="whole"), pytest.param(Grid(5, 7, 6), id="ragged")])
@pytest.mark.parametrize(
    "config", [pytest.param(BSAConfig(0.5), id="top-k"), pytest.param(BSAConfig(None, 0.7), id="threshold")]
)
def test_sparse_attention_runs_by_them(grid, config):
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 2, grid.volume, 32, generator=generator).bfloat16() for _ in range(3))
    with torch.no_grad():
        out = block_sparse_attention(q, k, v, grid, config)
    expected = block_sparse_attention(q.double(), k.double(), v.double(), grid, config)
    assert distance(out, expected) < 6e-3
