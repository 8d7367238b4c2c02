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


def test_tables_of_a_judged_study(monkeypatch):
    """As `quality.py` writes it with the classifier: two columns more, and a table of the layers."""
    study = json.loads((ROOT / "benchmarks" / "results" / "quality.json").read_text())
    for row in study["rows"]:
        row |= {"flips": 3, "judged": 37, "follows": 0.919}
        if "bsa" in row:
            row["layers"] = {"recall": [0.5, 0.25], "error": [0.125, 0.0625]}
    study |= {"dense": {"follows": 0.946}, "probed": 2}
    monkeypatch.setattr(tables, "load", lambda name: study)
    details, layers = tables.quality_details(), tables.quality_layers()
    assert "37 prompts have one object and are judged: 95% of the dense videos follow them" in details
    sparsities = [row["bsa"]["sparsity"] for row in study["rows"] if "bsa" in row]
    assert details.count("| 3 of 37 | 92% |") == sparsities.count(0.75) + sparsities.count(0.9375)
    assert "| mass kept | 0.75 | mean | 4x4x4 / 4x4x4 | 0.50 | 0.25 |" in layers
    assert "| output error | 0.9375 | cells | 2x2x4 / 2x2x4 | 0.12 | 0.06 |" in layers
    assert {line.count("|") for line in layers.splitlines() if line.startswith("|")} == {7}


def test_a_table_without_results_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert "Not measured yet." in tables.fill("<!-- table: forward -->\n<!-- end -->")


IN_SMALL = {
    "attention": ("attention.py --part sweep", {"ours", "ours, means given", "ours, baseline"}),
    "variants": ("attention.py --part variants", {"selection, sorted"}),
    "peers": ("attention.py --part peers", {"FlexAttention"}),
    "forward": (
        "forward.py",
        {"fast, sparse", "plain, dense", "FastVideo, dense", "fast, dense, fp8", "fast, sparse, bf16 offload"},
    ),
    "numerics": ("forward.py --numerics", {"fast, sparse", "FastVideo, dense", "fast, fp8, dense"}),
    "selection": ("selection.py", {"mean, select", "cells, operation"}),
    "curve": ("cost_curve.py", {"sparse", "dense"}),
    "memory": ("memory.py", {"fast, sparse", "plain, sparse", "decoding, frame by frame"}),
    "quality": ("quality.py", {"0.9375 mean 4x4x4 4x4x4", "0.9375 cells 4x4x4 4x4x4 dense layers 2"}),
    "fused": ("fused_check.py", {"swiglu to 8 bits", "head norm"}),
    "multi-gpu": ("multi_gpu.py", {"sparse", "exchange"}),
}


@pytest.fixture(scope="module")
def rows_of(tmp_path_factory):
    """The rows that a program wrote; all have run in one process."""
    folder = tmp_path_factory.mktemp("rows")
    lines = [
        json.dumps([*command.split(), "--smoke", "--output", str(folder / f"{name}.json")])
        for name, (command, _) in IN_SMALL.items()
    ]
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("benchmark_programs.py")],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    failures = json.loads(done.stdout.splitlines()[-1])

    def rows(name):
        number = str(list(IN_SMALL).index(name))
        assert number not in failures, failures[number] + done.stderr[-2000:]
        return json.loads((folder / f"{name}.json").read_text())["rows"]

    return rows


def test_the_study_of_quality_runs_in_small_with_its_judge_and_its_layers(rows_of):
    floor, *settings = rows_of("quality")
    assert {row["name"] for row in settings} == IN_SMALL["quality"][1]
    for row in (floor, *settings):
        assert row["judged"] == 1 and row["flips"] in (0, 1) and row["follows"] in (0, 1)
    plain, scheduled = settings
    assert all(0 < kept < 1 for kept in plain["layers"]["recall"]) and len(plain["layers"]["recall"]) == 10
    assert all(0 < error < 1 for error in plain["layers"]["error"])
    assert "layers" not in scheduled


@pytest.mark.parametrize("name", [name for name in IN_SMALL if name not in ("peers", "quality")])
def test_gpu_benchmarks_run_in_small_on_the_cpu(rows_of, name):
    rows = rows_of(name)
    assert IN_SMALL[name][1] <= {row["what"] for row in rows}
    assert not [row for row in rows if "failed" in row]


def test_the_peers_run_in_small_and_one_that_cannot_says_why(rows_of):
    rows = rows_of("peers")
    whole, ragged = (row for row in rows if row["what"] == "FlexAttention")
    assert whole["error"] < 1e-5
    assert "all of one size" in ragged["failed"]
    assert [row for row in rows if "failed" in row] == [ragged]


PEERS = [("flashinfer", "flashinfer", "fa3"), ("cudnn", "cudnn", 1), ("cudnn", "cudnn", "auto")]


@pytest.fixture(scope="module")
def rows_without_packages(tmp_path_factory):
    """The rows of three peers, measured in one process that has neither package."""
    output = tmp_path_factory.mktemp("peers") / "rows.json"
    program = f"""
import sys
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
sys.modules |= dict.fromkeys(("flashinfer", "cudnn"))
import attention, attention_peers, gpu, torch
case = attention.Case(attention.Grid(4, 8, 8), attention.CHUNKS[0], 0.5, *attention.SMOKE, torch.device("cpu"))
rows = gpu.Rows(gpu.arguments("rows", "rows").parse_args(["--output", {str(output)!r}]), case.device)
for peer, given in {[(peer, given) for peer, _, given in PEERS]!r}:
    rows.measure({{"what": peer, "given": given}}, lambda: getattr(attention_peers, peer)(case, given))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(output.read_text())["rows"]


@pytest.mark.parametrize(("peer", "package", "given"), PEERS)
def test_a_peer_whose_package_is_missing_is_a_failed_row(rows_without_packages, peer, package, given):
    [row] = [row for row in rows_without_packages if (row["what"], row["given"]) == (peer, given)]
    assert package in row["failed"] and row["failed"].startswith("ModuleNotFoundError")
