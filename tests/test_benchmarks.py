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
            "attention.py", ["--part", "variants"], {"ours, block order", "selection, sorted"}, id="attention"
        ),
        pytest.param("forward.py", [], {"fast, sparse", "fast, dense", "plain, sparse", "plain, dense"}, id="forward"),
        pytest.param("forward.py", ["--memory"], {"fast, sparse", "plain, dense"}, id="memory"),
    ],
)
def test_gpu_benchmarks_run_in_small_on_the_cpu_and_go_on_where_they_stopped(tmp_path, program, options, expected):
    output = tmp_path / "rows.json"
    command = [sys.executable, ROOT / "benchmarks" / program, "--smoke", "--output", output, *options]
    results = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        results.append(json.loads(output.read_text())["rows"])
    assert results[0] == results[1]  # nothing was measured again
    assert expected <= {row["what"] for row in results[0]}
    assert not [row for row in results[0] if "failed" in row]


def test_the_check_of_the_fused_kernels_runs_on_the_cpu():
    command = [sys.executable, ROOT / "benchmarks" / "fused_check.py", "--smoke"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.count(" ok\n") == 5, done.stdout + done.stderr[-2000:]
