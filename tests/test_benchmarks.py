"""The measured tables in docs/ are the ones that benchmarks/results/ gives."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
tables = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tables)


def test_documents_agree_with_the_results():
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "tables.py", "--check"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_table_is_shown_and_follows_its_results(name):
    shown = [page for page in (ROOT / "docs").glob("*.md") if f"<!-- table: {name} -->" in page.read_text("utf-8")]
    assert shown, f"no document shows the table {name}"
    stale = tables.fill(f"<!-- table: {name} -->\nold\n<!-- end -->")
    assert "old" not in stale.splitlines()
    if "Not measured yet." not in stale:
        assert stale.count("\n| ") > 2


def test_a_table_without_results_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert "Not measured yet." in tables.fill("<!-- table: forward -->\n<!-- end -->")


@pytest.mark.parametrize(
    ("program", "options", "expected"),
    [
        pytest.param(
            "attention.py", ["--part", "sweep"], {"ours", "ours, means given", "ours, baseline"}, id="attention"
        ),
        pytest.param("attention.py", ["--part", "variants"], {"selection, sorted"}, id="variants"),
        pytest.param(
            "forward.py",
            [],
            {"fast, sparse", "plain, dense", "FastVideo, dense", "fast, dense, fp8", "fast, sparse, bf16 offload"},
            id="forward",
        ),
        pytest.param(
            "forward.py", ["--numerics"], {"fast, sparse", "FastVideo, dense", "fast, fp8, dense"}, id="numerics"
        ),
        pytest.param("selection.py", [], {"mean, select", "cells, operation"}, id="selection"),
        pytest.param("cost_curve.py", [], {"sparse", "dense"}, id="curve"),
        pytest.param("memory.py", [], {"fast, sparse", "plain, sparse", "decoding, frame by frame"}, id="memory"),
        pytest.param("fused_check.py", [], {"swiglu to 8 bits", "head norm"}, id="fused"),
    ],
)
def test_gpu_benchmarks_run_in_small_on_the_cpu(tmp_path, program, options, expected):
    output = tmp_path / "rows.json"
    command = [sys.executable, ROOT / "benchmarks" / program, "--smoke", "--output", output, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(output.read_text())["rows"]
    assert expected <= {row["what"] for row in rows}
    assert not [row for row in rows if "failed" in row]


def test_the_peers_run_in_small_and_one_that_cannot_says_why(tmp_path):
    output = tmp_path / "rows.json"
    command = [sys.executable, ROOT / "benchmarks" / "attention.py", "--smoke", "--part", "peers", "--output", output]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(output.read_text())["rows"]
    whole, ragged = (row for row in rows if row["what"] == "FlexAttention")
    assert whole["error"] < 1e-5
    assert "all of one size" in ragged["failed"]
    assert [row for row in rows if "failed" in row] == [ragged]


@pytest.mark.parametrize(
    ("peer", "package", "given"),
    [("flashinfer", "flashinfer", "fa3"), ("cudnn", "cudnn", 1), ("cudnn", "cudnn", "auto")],
)
def test_a_peer_whose_package_is_missing_is_a_failed_row(tmp_path, peer, package, given):
    program = f"""
import sys
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
sys.modules[{package!r}] = None
import attention, attention_peers, gpu, torch
case = attention.Case(attention.Grid(4, 8, 8), attention.CHUNKS[0], 0.5, *attention.SMOKE, torch.device("cpu"))
args = gpu.arguments("rows", "rows").parse_args(["--output", {str(tmp_path / "rows.json")!r}])
gpu.Rows(args, case.device).measure({{"what": {peer!r}}}, lambda: attention_peers.{peer}(case, {given!r}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    [row] = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert package in row["failed"] and row["failed"].startswith("ModuleNotFoundError")
