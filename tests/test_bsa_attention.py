"""The public op on the CPU, against a slow oracle written out in this file."""

import itertools
import logging
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import bsa
from bsa import BSAConfig, Grid, block_sparse_attention

ROWS = [
    pytest.param((4, 8, 8), (4, 4, 4), (4, 4, 4), 16, {"sparsity": 0.5}, id="divisible"),
    pytest.param((4, 8, 8), (2, 4, 4), (4, 4, 2), 32, {"sparsity": 0.75}, id="unequal-chunks"),
    pytest.param((5, 7, 9), (2, 3, 4), (3, 2, 5), 24, {"sparsity": 0.9}, id="ragged-everywhere"),
    pytest.param((3, 9, 10), (3, 5, 7), (3, 5, 7), 17, {"sparsity": 0.5}, id="odd-chunk-odd-dim"),
    pytest.param((3, 5, 7), (4, 4, 4), (1, 1, 1), 16, {"sparsity": 0.9375}, id="single-token-keys"),
    pytest.param((4, 6, 6), (2, 2, 2), (2, 2, 2), 16, {"cdf_threshold": 0.6}, id="threshold"),
    pytest.param((5, 7, 9), (2, 3, 4), (3, 2, 5), 16, {"cdf_threshold": 0.6}, id="threshold-ragged"),
    pytest.param((4, 6, 6), (2, 2, 2), (2, 2, 2), 16, {"sparsity": 0.8, "cdf_threshold": 0.5}, id="both"),
    pytest.param((1, 1, 3), (4, 4, 4), (4, 4, 4), 16, {"sparsity": 0.9375}, id="one-block"),
]


def make(grid, chunk_q, chunk_k, rule, dim, dtype=torch.float32, batch=2, heads=2, **kwargs):
    torch.manual_seed(0)
    config = BSAConfig(**{"sparsity": None, **rule}, chunk_q=chunk_q, chunk_k=chunk_k)
    q, k, v = (torch.randn(batch, heads, math.prod(grid), dim, dtype=dtype, **kwargs) for _ in range(3))
    # Spread-out scores, since near-equal attention weights would hide a wrong block; flatter towards the last
    # tokens, so that under a threshold the small blocks at the edge keep more than the whole ones.
    with torch.no_grad():
        q *= torch.linspace(5, 0.5, q.shape[2])[:, None]
    return q, k, v, Grid(*grid), config


def block_numbers(grid, chunk):
    """Block number of every raster token, from coordinates."""
    columns = [-(-size // step) for size, step in zip(grid, chunk)]
    tokens = itertools.product(*map(range, grid))
    places = [[x // step for x, step in zip(token, chunk)] for token in tokens]
    return torch.tensor([(t * columns[1] + h) * columns[2] + w for t, h, w in places])


def oracle(q, k, v, grid, config, selection):
    """Softmax over exactly the selected tokens, one query at a time, in fp64."""
    q, k, v = q.double(), k.double(), v.double()
    q_number, k_number = block_numbers(grid, config.chunk_q), block_numbers(grid, config.chunk_k)
    heads = []
    for b, h in itertools.product(range(q.shape[0]), range(q.shape[1])):
        rows = []
        for token in range(grid.volume):
            block = q_number[token]
            kept = selection.indices[b, h, block, : selection.counts[b, h, block]]
            keys = torch.isin(k_number, kept)
            weights = (k[b, h, keys] @ q[b, h, token] / math.sqrt(q.shape[-1])).softmax(0)
            rows.append(weights @ v[b, h, keys])
        heads.append(torch.stack(rows))
    return torch.stack(heads).view_as(q)


def relative_error(value, expected):
    return float((value.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize(("grid", "chunk_q", "chunk_k", "dim", "rule"), ROWS)
def test_matches_the_oracle(backend, grid, chunk_q, chunk_k, dim, rule):
    q, k, v, grid, config = make(grid, chunk_q, chunk_k, rule, dim)
    out, selection = block_sparse_attention(q, k, v, grid, config, backend=backend, return_selection=True)
    # fp32 keeps 24 bits, sums here have under a thousand terms.
    assert relative_error(out, oracle(q, k, v, grid, config, selection)) < 2e-6


@pytest.mark.parametrize("step_bytes", [pytest.param(1, id="one-block"), pytest.param(100_000, id="a-few-blocks")])
@pytest.mark.parametrize(("grid", "chunk_q", "chunk_k", "dim", "rule"), ROWS)
def test_step_size_changes_nothing(monkeypatch, step_bytes, grid, chunk_q, chunk_k, dim, rule):
    q, k, v, grid, config = make(grid, chunk_q, chunk_k, rule, dim)
    expected = block_sparse_attention(q, k, v, grid, config, backend="reference")
    monkeypatch.setattr("bsa.gather._CPU_STEP_BYTES", step_bytes)
    assert relative_error(block_sparse_attention(q, k, v, grid, config, backend="torch"), expected.double()) < 2e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("grid", "chunk_q", "chunk_k", "dim", "rule"), ROWS)
def test_half_precision_is_no_worse_than_rounding_the_weights(dtype, grid, chunk_q, chunk_k, dim, rule):
    q, k, v, grid, config = make(grid, chunk_q, chunk_k, rule, dim, dtype)
    out, selection = block_sparse_attention(q, k, v, grid, config, backend="torch", return_selection=True)
    assert out.dtype == dtype
    # One rounding of the weights before P @ V and one of the result.
    assert relative_error(out, oracle(q, k, v, grid, config, selection)) < 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize(("grid", "chunk_q", "chunk_k", "dim", "rule"), ROWS)
def test_gradients_match_the_reference(grid, chunk_q, chunk_k, dim, rule):
    q, k, v, grid, config = make(grid, chunk_q, chunk_k, rule, dim, torch.float64, requires_grad=True)
    grads = []
    for backend in ("torch", "reference"):
        out = block_sparse_attention(q, k, v, grid, config, backend=backend)
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        grads.append(torch.autograd.grad((out * weights).sum(), (q, k, v)))
    for ours, expected in zip(*grads, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize(
    ("grid", "chunk_q", "chunk_k", "rule"),
    [
        pytest.param((4, 8, 8), (4, 4, 4), (4, 4, 4), {"sparsity": 0.0}, id="sparsity-0"),
        pytest.param((5, 7, 9), (2, 3, 4), (3, 2, 5), {"sparsity": 0.0}, id="sparsity-0-ragged"),
        pytest.param((5, 7, 9), (2, 3, 4), (3, 2, 5), {"cdf_threshold": 1.0}, id="threshold-1-ragged"),
        pytest.param((1, 3, 3), (4, 4, 4), (4, 4, 4), {"sparsity": 0.9375}, id="a-single-block"),
    ],
)
def test_keeping_everything_is_dense_attention(backend, grid, chunk_q, chunk_k, rule):
    q, k, v, grid, config = make(grid, chunk_q, chunk_k, rule, 32)
    dense = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert relative_error(block_sparse_attention(q, k, v, grid, config, backend=backend), dense) < 2e-6


def test_scale_reaches_scores_and_selection():
    q, k, v, grid, config = make((4, 6, 6), (2, 2, 2), (2, 2, 2), {"cdf_threshold": 0.6}, 16)
    sharp, few = block_sparse_attention(4 * q, k, v, grid, config, return_selection=True)
    scaled, same = block_sparse_attention(q, k, v, grid, config, scale=1.0, return_selection=True)
    torch.testing.assert_close(scaled, sharp, rtol=1e-4, atol=1e-5)
    assert torch.equal(few.counts, same.counts)


def test_any_strides():
    q, k, v, grid, config = make((5, 7, 9), (2, 3, 4), (3, 2, 5), {"sparsity": 0.7}, 16)
    expected = block_sparse_attention(q, k, v, grid, config)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    assert torch.equal(block_sparse_attention(*strided, grid, config), expected)


def test_autocast_changes_nothing():
    q, k, v, grid, config = make((4, 8, 8), (4, 4, 4), (4, 4, 4), {"sparsity": 0.5}, 16)
    expected = block_sparse_attention(q, k, v, grid, config)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(block_sparse_attention(q, k, v, grid, config), expected)


@pytest.mark.parametrize(
    ("change", "kwargs", "message"),
    [
        pytest.param({}, {"grid": (4, 8, 9)}, r"256 tokens.*4x8x9 has 288", id="grid"),
        pytest.param({}, {"grid": (4, 64)}, r"grid must be three", id="grid-of-two"),
        pytest.param({"k": torch.zeros(1, 2, 255, 16)}, {}, r"\[1, 2, 255, 16\]", id="shapes"),
        pytest.param({"v": torch.zeros(1, 2, 256, 16).half()}, {}, r"one dtype.*float16", id="dtypes"),
        pytest.param({}, {"backend": "cuda"}, r"unknown backend 'cuda'.*torch", id="backend"),
        pytest.param({}, {"backend": "triton"}, r"tensors are on cpu.*use backend='torch'", id="no-fallback"),
        pytest.param({}, {"eight_bits": True}, r"8 bits is computed by the triton.*runs on torch", id="8-bits"),
        pytest.param({}, {"scale": 0.0}, r"scale must be positive.*0\.0", id="scale"),
        pytest.param(
            {name: torch.zeros(1, 2, 256, 16).int() for name in "qkv"}, {}, r"floating point.*int32", id="integers"
        ),
    ],
)
def test_misuse_is_refused_in_one_sentence(change, kwargs, message):
    tensors = {name: torch.zeros(1, 2, 256, 16) for name in "qkv"} | change
    with pytest.raises(ValueError, match=message):
        block_sparse_attention(*tensors.values(), **{"grid": (4, 8, 8), "config": BSAConfig(0.5), **kwargs})


def test_auto_says_once_what_it_chose_and_why(caplog, monkeypatch):
    monkeypatch.setattr("bsa.attention._announced", set())
    q, k, v, grid, config = make((4, 8, 8), (4, 4, 4), (4, 4, 4), {"sparsity": 0.5}, 16)
    with caplog.at_level(logging.INFO, logger="bsa"):
        block_sparse_attention(q, k, v, grid, config)
        block_sparse_attention(q, k, v, grid, config)
    assert [record.getMessage() for record in caplog.records] == [
        "block sparse attention runs on the torch backend because the tensors are on cpu, not on CUDA"
    ]


@pytest.mark.parametrize(
    ("code", "loaded"),
    [
        pytest.param("import bsa", [], id="package"),
        pytest.param("from bsa import BSAConfig; BSAConfig(sparsity=0.5).blocks((4, 8, 8))", [], id="arithmetic"),
        pytest.param("from bsa import block_sparse_attention", ["torch"], id="computing"),
        pytest.param("from bsa import *", ["torch"], id="everything"),
    ],
)
def test_import_loads_no_more_than_it_needs(code, loaded):
    heavy = ["torch", "triton", "fastvideo", "gradio"]
    code = f"{code}; import sys; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str(loaded)


def test_names_of_the_package():
    assert all(hasattr(bsa, name) for name in bsa.__all__)
    assert set(bsa.__all__) <= set(dir(bsa))
    assert bsa.block_sparse_attention is block_sparse_attention
    assert not hasattr(bsa, "nonsense")


@pytest.mark.parametrize(
    ("grid", "dtype"),
    [
        pytest.param((4, 8, 8), torch.bfloat16, id="divisible"),
        pytest.param((4, 5, 9), torch.float32, id="ragged"),
    ],
)
def test_top_k_training_never_reads_a_tensor_back(grid, dtype):
    # Meta tensors have no values: an .item(), a boolean index or a data-dependent loop would raise here.
    q, k, v = (torch.empty(2, 3, math.prod(grid), 64, device="meta", dtype=dtype, requires_grad=True) for _ in range(3))
    out = block_sparse_attention(q, k, v, Grid(*grid), BSAConfig(0.5), backend="torch")
    out.sum().backward()
    assert out.shape == q.grad.shape == v.grad.shape


@pytest.mark.parametrize(("grid", "chunk_q", "chunk_k", "dim", "rule"), ROWS)
def test_the_formulation_for_gpus_equals_the_one_for_cpus(monkeypatch, grid, chunk_q, chunk_k, dim, rule):
    q, k, v, grid, config = make(grid, chunk_q, chunk_k, rule, dim, requires_grad=True)
    results = []
    for steps in (True, False):
        monkeypatch.setattr("bsa.gather._prefers_steps", lambda device, choice=steps: choice)
        out = block_sparse_attention(q, k, v, grid, config, backend="torch")
        results.append([out, *torch.autograd.grad(out.square().sum(), (q, k, v))])
    for one, other in zip(*results, strict=True):
        # fp32 sums in another order.
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
