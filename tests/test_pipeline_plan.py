"""One plan for everybody: what it carries, what it refuses, and that nobody else decides the same again."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from fresh import fresh_process

from bsa import BSAConfig, Grid
from pipeline import EMBEDDED_CHECKPOINT, LongCatPipeline, inspect_checkpoint
from pipeline.cli.main import main
from pipeline.estimate.estimator import Estimator
from pipeline.request.load_options import AS_STORED, LoadOptions
from pipeline.runs.plan import plan, plan_to_load

ROOT = Path(__file__).parents[1]
CPU = SimpleNamespace(type="cpu", index=None)
INFO = inspect_checkpoint(EMBEDDED_CHECKPOINT)
SPARSE = BSAConfig(sparsity=0.75)
MIXED = BSAConfig(0.5, None, (2, 4, 4), (2, 4, 6))  # neither divides the other


def asked(**changes):
    values = {"height": 256, "width": 256, "num_frames": 61, "bsa": SPARSE, "guidance_scale": 1.0}
    return INFO.request("x", **values | changes)


@pytest.mark.parametrize(
    ("changes", "grid", "rows", "sparse", "reason"),
    [
        pytest.param({}, Grid(16, 16, 16), 1, True, "keeps 16 of 64 key blocks", id="sparse"),
        pytest.param({"guidance_scale": 4}, Grid(16, 16, 16), 2, True, "keeps 16 of 64", id="guided"),
        pytest.param({"bsa": None}, Grid(16, 16, 16), 1, False, "dense attention was asked for", id="dense"),
        pytest.param({"num_frames": 1}, Grid(1, 16, 16), 1, False, "a single latent frame", id="one-frame"),
        pytest.param({"height": 240, "num_frames": 13}, Grid(4, 15, 16), 1, True, "keeps 4 of 16", id="ragged"),
    ],
)
def test_what_a_plan_carries(changes, grid, rows, sparse, reason):
    request = asked(**changes)
    made = plan(INFO, request, AS_STORED, CPU, estimator=Estimator(INFO, CPU), available=2**40)
    assert (made.work.grid, made.work.rows, made.work.sparse) == (grid, rows, sparse)
    assert reason in made.work.reason
    assert made.work.bsa == (request.bsa if sparse else None)
    assert made.work.blocks == (request.bsa.blocks(grid) if sparse else None)
    assert made.steps == request.steps
    assert made.forward[:2] == ("fast", "it is the faster one on a CPU")
    assert made.estimate.memory > made.estimate.memory_least > 0


@pytest.mark.parametrize(
    ("changes", "weights", "forward", "sentence"),
    [
        pytest.param({"lora": "nobody"}, AS_STORED, "auto", "no LoRA adapter 'nobody'", id="adapter"),
        pytest.param({"bsa": MIXED}, AS_STORED, "fast", "the fast forward cannot run this request", id="forward"),
        pytest.param({"bsa": MIXED}, LoadOptions("fp8"), "auto", "needs the fast forward, which cannot", id="weights"),
        pytest.param({}, LoadOptions("fp8"), "plain", "the plain forward cannot run with --quantization", id="plain"),
        pytest.param(
            {}, LoadOptions("fp8+attention"), "auto", r"fp8\+attention needs a GPU, and this model runs on", id="8-bits"
        ),
        pytest.param(
            {"bsa": replace(SPARSE, dense_layers=99999)},
            AS_STORED,
            "auto",
            "dense_layers 99999 leaves none of the 10 layers sparse; use 9 or fewer, or dense attention",
            id="layers",
        ),
        pytest.param(
            {"bsa": replace(SPARSE, dense_steps=8), "steps": 8},
            AS_STORED,
            "auto",
            "dense_steps 8 leaves none of the 8 steps sparse; use 7 or fewer",
            id="steps",
        ),
        pytest.param(
            {"bsa": replace(SPARSE, dense_steps=1), "steps": 1},
            AS_STORED,
            "auto",
            "dense_steps 1 leaves none of the 1 steps sparse; use 0, or",
            id="only step",
        ),
        pytest.param({"width": 12800, "height": 7040}, AS_STORED, "auto", "12800x7040 with 61 frames", id="memory"),
    ],
)
def test_what_a_plan_refuses(changes, weights, forward, sentence):
    request = replace(asked(), **changes)
    with pytest.raises(ValueError, match=sentence):
        plan(INFO, request, weights, CPU, forward=forward, estimator=Estimator(INFO, CPU), available=2**34)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"bsa": replace(SPARSE, dense_steps=7, dense_layers=9), "steps": 8}, id="all but one"),
        pytest.param({"bsa": replace(SPARSE, dense_layers=99), "num_frames": 1}, id="dense anyway"),
    ],
)
def test_what_leaves_something_sparse_or_is_dense_anyway_is_planned(changes):
    request = replace(asked(), **changes)
    assert plan(INFO, request, AS_STORED, CPU).work.sparse == (request.num_frames > 1)


@pytest.mark.parametrize("command", [["generate"], ["generate", "--compare"], ["sweep", "--rows", "seed=1,2"]])
def test_the_command_line_refuses_before_anything_is_loaded(monkeypatch, capsys, tmp_path, command):
    monkeypatch.setattr(LongCatPipeline, "load", lambda *_, **__: pytest.fail("weights were loaded"))
    words = [*command, "--prompt", "x", "--sparsity", "0.5", "--width", "12800", "--height", "7040"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 2
    assert "error: 12800x7040 with 61 frames needs about" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_one_cell_of_many_is_refused_with_its_numbers():
    requests = [asked(), asked(width=12800, height=7040)]
    with pytest.raises(ValueError, match="12800x7040"):
        plan_to_load(INFO, requests, AS_STORED, CPU)


def test_planning_needs_no_torch():
    code = (
        "import sys; from types import SimpleNamespace; from pipeline import EMBEDDED_CHECKPOINT, inspect_checkpoint; "
        "from pipeline.estimate.estimator import Estimator; from pipeline.request.load_options import AS_STORED; "
        "from pipeline.runs.plan import plan; cpu = SimpleNamespace(type='cpu', index=None); "
        "info = inspect_checkpoint(EMBEDDED_CHECKPOINT); estimator = Estimator(info, cpu); "
        "print(plan(info, info.request('x'), AS_STORED, cpu, estimator=estimator).work.grid, 'torch' in sys.modules)"
    )
    assert fresh_process(code).stdout.split() == ["16x16x16", "False"]


def test_rows_and_activity_are_decided_in_one_place():
    """Nobody compares the guidance scale with 1 or asks which frames are too few for BSA but the workload."""
    found = []
    for path in [path for folder in ("pipeline", "ui") for path in sorted((ROOT / folder).rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.IfExp) and "guidance_scale > 1" in ast.unparse(node.test):
                found.append(str(path.relative_to(ROOT)))
    assert found == ["pipeline/request/workload.py"]
