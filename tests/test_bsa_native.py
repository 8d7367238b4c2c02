"""The kernel that is compiled for this CPU: against a dense mask in fp64, and when it is built, loaded and chosen."""

import ctypes
import logging
import multiprocessing
import os
from functools import partial

import pytest
import torch

from bsa import BSAConfig, Grid, backends, block_order_attention, block_sparse_attention, full_attention, nested_layouts
from bsa.native import attend, build, choice
from bsa.native.build import NotBuilt

# Rounded weights and results, 2^-9 each, as in PyTorch's own attention; in fp32 sums of some hundred products.
TOLERANCE = {torch.bfloat16: 4e-3, torch.float32: 2e-6}
ROWS = [
    pytest.param((4, 8, 8), {"sparsity": 0.5}, 0, id="whole"),
    pytest.param((5, 7, 9), {"sparsity": 0.7}, 0, id="ragged"),
    pytest.param((5, 7, 9), {"cdf_threshold": 0.6}, 0, id="counts-differ"),
    pytest.param((5, 6, 7), {"sparsity": 0.5, "chunk_q": (4, 4, 4), "chunk_k": (1, 3, 5)}, 0, id="odd-chunks"),
    pytest.param((4, 8, 8), {"sparsity": 0.5, "chunk_q": (4, 8, 8), "chunk_k": (2, 2, 2)}, 0, id="long-query-blocks"),
    pytest.param((5, 7, 9), {"sparsity": 0.5}, 2, id="conditioning"),
]
DTYPES = [pytest.param(dtype, id=str(dtype).removeprefix("torch.")) for dtype in TOLERANCE]


@pytest.fixture(autouse=True)
def switched_on(monkeypatch):
    monkeypatch.delenv(choice.SWITCH, raising=False)


def needs(dtype):
    """Skip where the kernel cannot run, and say why."""
    reason = choice.lacking(dtype) or choice._unbuilt(dtype)
    if reason:
        pytest.skip(f"no native kernel: {reason}")


def tensors(batch, heads, tokens, dim, dtype):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(batch, heads, tokens, dim, generator=generator).to(dtype) for _ in range(3))


def distance(out, expected):
    return float((out.double() - expected).norm() / expected.norm())


@pytest.fixture
def poisoned(monkeypatch):
    """Outputs that start as NaN: what no tile writes shows."""
    empty = torch.empty

    def nans(*args, **kwargs):
        out = empty(*args, **kwargs)
        return out.fill_(float("nan")) if out.is_floating_point() else out

    monkeypatch.setattr(torch, "empty", nans)


@pytest.mark.parametrize("dim", [32, 96])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "rule", "lead"), ROWS)
def test_equals_a_dense_mask_in_both_orders(poisoned, size, rule, lead, dtype, dim):
    needs(dtype)
    grid, config = Grid(*size), BSAConfig(**{"sparsity": None, **rule})
    q, k, v = tensors(2, 3, grid.volume, dim, dtype)
    options = {"conditioning": lead, "return_selection": True}
    out, selection = block_sparse_attention(q, k, v, grid, config, backend="native", **options)
    exact = (x.double() for x in (q, k, v))
    expected = block_sparse_attention(*exact, grid, config, conditioning=lead, backend="reference", selection=selection)
    assert out.is_contiguous() and distance(out, expected) < TOLERANCE[dtype]
    if "chunk_k" in rule and rule["chunk_k"] == (1, 3, 5):
        return  # these chunks share no block order
    layout, _ = nested_layouts(grid, config.chunk_q, config.chunk_k, lead)
    order, back = layout.order(q.device), layout.place_of_token(q.device)
    ordered = (x[:, :, order].transpose(1, 2) for x in (q, k, v))
    out = block_order_attention(*ordered, layout, config, backend="native", selection=selection)
    assert distance(out[:, back].transpose(1, 2), expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("queries", "keys", "dim"),
    [
        pytest.param(1, 1, 32, id="one"),
        pytest.param(15, 129, 64, id="odd"),
        pytest.param(197, 391, 256, id="several-tiles"),
    ],
)
def test_dense_attention(poisoned, queries, keys, dim, dtype):
    needs(dtype)
    q, k, v = tensors(2, 2, max(queries, keys), dim, dtype)
    q, k, v = q[:, :, :queries], k[:, :, :keys].mT.contiguous().mT, v[:, :, :keys]  # k with channels far apart
    out = full_attention(q, k, v, backend="native")
    scores = q.double() @ k.double().mT / dim**0.5
    assert distance(out, scores.softmax(-1) @ v.double()) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_scores(dtype):
    """Scores of several hundred, and rows whose largest comes last: fp32 sums lose 2^-24 of a score."""
    needs(dtype)
    q, k, v = tensors(1, 2, 300, 64, dtype)
    k = k * torch.linspace(1, 40, 300)[:, None].to(dtype)
    out = full_attention(q, k, v, backend="native")
    expected = (q.double() @ k.double().mT / 8).softmax(-1) @ v.double()
    assert distance(out, expected) < max(TOLERANCE[dtype], 1e-4)


def test_faults_of_the_numbers_stay_visible():
    needs(torch.bfloat16)
    q, k, v = tensors(1, 1, 70, 32, torch.bfloat16)
    q[0, 0, 66, 3] = float("nan")
    out = full_attention(q, k, v, backend="native")
    assert out[0, 0, 66].isnan().all() and out.isnan().any(-1).sum() == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("indices", 9, id="block"),
        pytest.param("indices", -1, id="below"),
        pytest.param("counts", 9, id="count"),
    ],
)
def test_a_list_with_what_there_is_not_is_refused(name, value):
    """It would read outside of the tensors."""
    needs(torch.float32)
    grid, config = Grid(4, 8, 8), BSAConfig(0.5)
    q, k, v = tensors(1, 1, grid.volume, 32, torch.float32)
    _, selection = block_sparse_attention(q, k, v, grid, config, return_selection=True)
    wrong = getattr(selection, name).clone()
    wrong.flatten()[-1] = value
    with pytest.raises(ValueError, match=r"outside 0\.\.3"):
        block_sparse_attention(q, k, v, grid, config, backend="native", selection=selection._replace(**{name: wrong}))


class TestChoice:
    def test_a_named_one_never_falls_back(self, monkeypatch):
        q, k, v = tensors(1, 1, 256, 32, torch.float64)
        for run in (full_attention, partial(block_sparse_attention, grid=(4, 8, 8), config=BSAConfig(0.5))):
            with pytest.raises(ValueError, match="native backend cannot run because it takes bfloat16 and float32"):
                run(q, k, v, backend="native")
            monkeypatch.setenv(choice.SWITCH, "0")
            with pytest.raises(ValueError, match="BSA_NATIVE=0 turns it off"):
                run(q.float(), k.float(), v.float(), backend="native")
            monkeypatch.delenv(choice.SWITCH)

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            pytest.param({"dtype": torch.float16}, "not torch.float16", id="dtype"),
            pytest.param({"dim": 48}, "not 48", id="dim"),
            pytest.param({"dim": 288}, "not 288", id="wide"),
            pytest.param({"grad": True}, "gradients", id="gradients"),
            pytest.param({"flags": frozenset()}, "the processor has no avx512f", id="processor"),
            pytest.param({"pool": None}, "OpenMP", id="threads"),
            pytest.param({"built": "there is no C compiler"}, "there is no C compiler", id="compiler"),
        ],
    )
    def test_auto_takes_pytorch_and_says_why(self, monkeypatch, caplog, change, reason):
        def no_object(dtype):
            raise NotBuilt(change["built"])

        monkeypatch.setattr(backends, "_announced", set())
        flags = frozenset(attend.FEATURES[torch.bfloat16].values())
        monkeypatch.setattr(choice, "processor_flags", lambda: change.get("flags", flags))
        monkeypatch.setattr(choice, "thread_pool", lambda: change.get("pool", 1))
        monkeypatch.setattr(choice, "compiled", no_object if "built" in change else lambda dtype: None)
        choice._unbuilt.cache_clear()
        q, k, v = tensors(1, 1, 8, change.get("dim", 32), change.get("dtype", torch.float32))
        q.requires_grad_("grad" in change)
        with caplog.at_level(logging.INFO, logger="bsa"):
            full_attention(q, k, v)
        choice._unbuilt.cache_clear()
        assert "dense attention runs on the torch backend" in caplog.text and reason in caplog.text

    @pytest.mark.parametrize(("times", "name"), [(2.0, "native"), (0.8, "torch")])
    def test_auto_takes_the_faster_one(self, monkeypatch, caplog, times, name):
        monkeypatch.setattr(backends, "_announced", set())
        monkeypatch.setattr(choice, "obstacle", lambda q, k, v: None)
        monkeypatch.setattr(choice, "gain", lambda dtype, other: times)
        with caplog.at_level(logging.INFO, logger="bsa"):
            assert backends.resolve_backend("auto", *tensors(1, 1, 8, 32, torch.float32)) == name
        said = (
            f"the {name} backend because on this CPU the native kernel takes {1 / times:.2f} times as long as PyTorch"
        )
        assert said in caplog.text

    def test_it_is_measured(self):
        needs(torch.float32)
        assert 0.01 < choice.gain(torch.float32, torch.nn.functional.scaled_dot_product_attention) < 100


C = "int answer(void) { return 42; }\n"


class TestBuild:
    @pytest.fixture(autouse=True)
    def own_cache(self, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.delenv("CC", raising=False)
        self.source = tmp_path / "some.c"
        self.source.write_text(C)

    def made(self):
        return sorted(build.cache_folder().iterdir())

    def needs_compiler(self):
        try:
            build._compiler()
        except NotBuilt as error:
            pytest.skip(str(error))

    def test_an_object_is_made_once_for_source_and_options(self, monkeypatch):
        self.needs_compiler()
        assert build.load(self.source, ()).answer() == 42
        (path,) = self.made()
        assert build.cache_folder().stat().st_mode & 0o777 == 0o700 and path.stat().st_mode & 0o077 == 0
        monkeypatch.setenv("CC", "/no/such/compiler")
        assert build.load(self.source, ()).answer() == 42 and self.made() == [path]
        with pytest.raises(NotBuilt, match="/no/such/compiler"):
            build.load(self.source, ("-DX=1",))
        assert self.made() == [path], "a failed compiler leaves nothing behind"

    def test_processes_that_start_together_have_one_object(self):
        self.needs_compiler()
        context = multiprocessing.get_context("fork")
        others = [context.Process(target=_load, args=(self.source,)) for _ in range(3)]
        for other in others:
            other.start()
        for other in others:
            other.join(60)
        assert [other.exitcode for other in others] == [0] * 3 and len(self.made()) == 1

    def test_what_does_not_compile_says_so(self):
        self.needs_compiler()
        self.source.write_text("int answer(")
        with pytest.raises(NotBuilt, match=r"could not compile some\.c: .*error"):
            build.load(self.source, ())
        assert self.made() == []

    def test_without_a_compiler(self, monkeypatch):
        monkeypatch.setenv("PATH", "")
        with pytest.raises(NotBuilt, match="there is no C compiler; install gcc"):
            build.load(self.source, ())

    def test_what_others_may_have_written_is_not_loaded(self, monkeypatch, tmp_path):
        folder = build.cache_folder()
        folder.mkdir(parents=True)
        folder.chmod(0o777)
        with pytest.raises(NotBuilt, match="others may have written"):
            build.load(self.source, ())
        folder.chmod(0o700)
        folder.rename(tmp_path / "theirs")
        folder.symlink_to(tmp_path / "theirs")
        with pytest.raises(NotBuilt, match="others may have written"):
            build.load(self.source, ())
        folder.unlink()
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        with pytest.raises(NotBuilt, match="others may have written"):
            build.load(self.source, ())

    def test_a_broken_object_is_named(self, monkeypatch):
        monkeypatch.setattr(build, "_compile", lambda source, options, path: path.write_bytes(b"no object"))
        with pytest.raises(NotBuilt, match=r"some-\w{32}\.so cannot be loaded .*delete it"):
            build.load(self.source, ())


def _load(source):
    raise SystemExit(build.load(source, ()).answer() - 42)


def test_the_request_is_as_long_as_in_c():
    """8 pointers, 4 times 3 strides, 6 sizes, 4 of blocks, then scale, threads and the pool."""
    assert ctypes.sizeof(attend._Request) == 8 * (4 + 12 + 6 + 4 + 4 + 1 + 1)
