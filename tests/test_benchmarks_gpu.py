"""The GPU benchmarks' own machinery, with made-up results: what is kept, chosen and drawn, and that every step runs."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"


def module(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


curve_plot, gpu, tables, tune, forward_profile, multi_gpu_table = map(
    module, ("curve_plot", "gpu", "tables", "tune", "forward_profile", "multi_gpu_table")
)
SVG = "{http://www.w3.org/2000/svg}"
ABOUT = {"device": "NVIDIA Made-up", "date": "2026-01-01T00:00:00+00:00", "torch": "0", "triton": "0"}


def curve(sparse, dense, tokens=(1000, 10_000, 100_000)):
    rows = []
    for frames, (count, *both) in enumerate(zip(tokens, sparse, dense, strict=True), 1):
        for what, seconds in zip(("sparse", "dense"), both, strict=True):
            rows.append({"size": "480p", "frames": frames, "tokens": count, "what": what, "ms": 1e3 * seconds})
    return rows


@pytest.mark.parametrize(
    ("sparse", "dense", "expected"),
    [
        # The ratio goes from 2 to 1/2 between 10^3 and 10^4 tokens, so it is 1 in the middle of the logarithms.
        pytest.param((2, 4, 8), (1, 8, 90), (10**3.5, 8**0.5), id="between"),
        pytest.param((1, 4, 8), (2, 8, 90), (1000, 1), id="always"),
        pytest.param((2, 9, 95), (1, 8, 90), None, id="never"),
        # A win that a loss follows does not count.
        pytest.param((1, 16, 8), (2, 8, 16), (10**4.5, 128**0.5), id="late"),
    ],
)
def test_where_sparse_starts_to_pay(sparse, dense, expected):
    found = curve_plot.crossing(curve(sparse, dense))
    assert found is expected or found == pytest.approx(expected)


def test_rows_that_failed_or_lack_a_partner_are_left_out_of_the_crossing():
    rows = curve((2, 4, 8), (1, 8, 90))
    rows += [{"size": "480p", "frames": 1, "tokens": 500, "what": "dense", "ms": 1.0}]
    rows += [{"size": "480p", "frames": 9, "tokens": 10**6, "what": "sparse", "failed": "out of memory"}]
    assert curve_plot.crossing(rows) == pytest.approx((10**3.5, 8**0.5))


def test_the_plot_is_an_svg_with_a_line_for_every_size_and_kind():
    rows = curve((2, 4, 8), (1, 8, 90)) + [{**row, "size": "1080p"} for row in curve((3, 5, 9), (1, 9, 99))]
    drawn = curve_plot.svg({**ABOUT, "device": 'A <"&> B', "rows": rows})
    root = ElementTree.fromstring(drawn)
    lines = [path for path in root.iter(SVG + "path") if path.get("fill") == "none"]
    assert len(lines) == 4 and len({(line.get("stroke"), line.get("stroke-dasharray")) for line in lines}) == 4
    assert len(list(root.iter(SVG + "circle"))) == 12
    assert {"480p BSA", "480p dense", "1080p BSA", "1080p dense"} <= {text.text for text in root.iter(SVG + "text")}
    for circle in root.iter(SVG + "circle"):
        assert 64 <= float(circle.get("cx")) <= 710 and 52 <= float(circle.get("cy")) <= 446
    # The slowest is at the top, the fastest at the bottom.
    heights = [float(circle.get("cy")) for circle in root.iter(SVG + "circle")]
    assert max(heights) - min(heights) > 300


def test_tables_and_plot_are_made_from_results_and_from_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(tables, "DOCS", tmp_path / "docs")
    (tmp_path / "results").mkdir()
    (tmp_path / "docs" / "images").mkdir(parents=True)
    names = ("forward", "numerics", "memory", "cost_curve", "fused", "attention_peers", "attention_sweep")
    page = tmp_path / "docs" / "page.md"
    page.write_text("\n".join(f"<!-- table: {name} -->\n<!-- end -->" for name in names))
    monkeypatch.setattr(sys, "argv", ["tables.py"])
    assert tables.main() == 0
    assert page.read_text().count("Not measured yet.") == 7 and not list((tmp_path / "docs" / "images").iterdir())

    small = {"size": "small", "grid": "8x16x16", "what": "fast, dense", "error": 0.0123}
    results = {
        "forward": [small, {"size": "704p", "grid": "24x44x80", "what": "fast, sparse", "ms": 3456.7, "first_s": 9.0}],
        "memory": [
            {"size": "720p", "what": "fast, sparse", "form": "fp8", "card_gib": 24, "failed": "Out | of memory"}
        ],
        "cost_curve": curve((2, 4, 8), (1, 8, 90)),
        "fused": [{"what": "swiglu", "ms": 0.5, "right": True}],
        "attention_gpu": [
            attention_row("24x44x80", "ours, means given", ms=15.1, tflops=480.4),
            attention_row("24x44x80", "dense, cuDNN", ms=1812.0, tflops=640.0),
            attention_row("24x45x80", "dense, cuDNN", failed="AssertionError: "),
        ],
    }
    for name, rows in results.items():
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps({**ABOUT, "rows": rows}))
    tables.main()
    text = page.read_text()
    assert "Not measured yet." not in text
    for part in (
        "fast, sparse | 3,457",
        "| ours, means given | 15.1 ms, 480 |  |",
        "| dense, cuDNN | 1,812 ms, 640 | no: AssertionError |",
        "| 4x4x4 | 15.1 ms, 480, 120.0x |",
        "8x16x16 | fast, dense | 0.0123",
        "Out / of memory",
        "about 3,162 tokens on",
    ):
        assert part in text, part
    plot = tmp_path / "docs" / "images" / "cost_curve.svg"
    assert "NVIDIA Made-up" in plot.read_text()
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    assert tables.main() == 0
    plot.write_text("another")
    assert tables.main() == 1 and plot.read_text() == "another"


def test_a_profile_is_summed_by_kind():
    kernels = [("nvjet_sm90_a", 2.0), ("_attend_descriptors_kernel", 1.5), ("sm80_xmma_gemm_f32f32", 0.25)]
    kernels += [("nvjet_sm90_b", 1.0), ("Memset (Device)", 9.0)]
    assert [(row["what"], row["ms"]) for row in forward_profile.by_kind(kernels)] == [
        ("matrix products", 3.0),
        ("block sparse attention", 1.5),
        ("fp32 products: block scores, modulation, last layer", 0.25),
        ("everything else", 9.0),
    ]


def attention_row(grid, what, **found):
    return {"grid": grid, "chunk": "4x4x4", "sparsity": 0.9375, "what": what, **found}


def kernel_row(grid, name, ms=None, chunk="4x4x4"):
    row = {"grid": grid, "chunk": chunk, "sparsity": 0.9375, "what": name}
    return row | ({"failed": "wrong result"} if ms is None else {"ms": ms, "agreement": 1.0})


def test_tuning_takes_the_variant_that_is_fastest_over_all_grids(tmp_path):
    rows = [
        kernel_row("a", "kernel pointers-64x64-w4-s3", 9.0),
        kernel_row("b", "kernel pointers-64x64-w4-s3", 9.0),
        kernel_row("a", "kernel descriptors-64x64-w4-s3", 5.0),
        kernel_row("b", "kernel descriptors-64x64-w4-s3", 12.0),
        kernel_row("a", "kernel descriptors-64x32-w4-s3", 1.0),  # fastest, but wrong on b
        kernel_row("b", "kernel descriptors-64x32-w4-s3"),
        *(kernel_row(grid, "selection, sorted", 2.0) for grid in "ab"),
        *(kernel_row(grid, "selection, fused top-k", 0.4) for grid in "ab"),
        kernel_row("a", "kernel pointers-64x32-w4-s3", 3.0, "4x4x8"),
        kernel_row("a", "selection, sorted", 2.0, "4x4x8"),
        kernel_row("a", "selection, fused top-k", 2.5, "4x4x8"),
        kernel_row("a", "ours", 1.0),
    ]
    expected = {
        "bfloat16 d128 q64 k64": {"variant": "descriptors-64x64-w4-s3", "fused_top_k": True},
        "bfloat16 d128 q128 k128": {"variant": "pointers-64x32-w4-s3", "fused_top_k": False},
    }
    assert tune.choices({**ABOUT, "rows": rows}) == expected
    disagreeing = [{**row, "agreement": 0.99} if "top-k" in row["what"] else row for row in rows]
    assert not tune.choices({**ABOUT, "rows": disagreeing})["bfloat16 d128 q64 k64"]["fused_top_k"]

    output = tmp_path / "tuned.json"
    output.write_text('{"Another GPU": {}}')
    measured = tmp_path / "attention_gpu.json"
    measured.write_text(json.dumps({**ABOUT, "rows": rows}))
    command = [sys.executable, BENCHMARKS / "tune.py", "--input", measured, "--output", output]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert json.loads(output.read_text()) == {"Another GPU": {}, "NVIDIA Made-up": expected}

    # Kernels in 8 bits are named beside the others, and only there: a case with nothing else is no measured case.
    in_8_bits = "quantising and kernel "
    rows = [
        kernel_row("a", f"{in_8_bits}pointers-64x64-w4-s5", 9.0),
        kernel_row("a", f"{in_8_bits}descriptors-64x64-w4-s5", 8.0),
        kernel_row("a", "kernel, bf16", 1.0),
        kernel_row("a", f"{in_8_bits}pointers-64x64-w4-s5", 9.0, "4x8x8"),
    ]
    measured.write_text(json.dumps({**ABOUT, "rows": rows}))
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    expected["bfloat16 d128 q64 k64"]["eight_bits"] = "descriptors-64x64-w4-s5"
    assert json.loads(output.read_text())["NVIDIA Made-up"] == expected


def test_the_stored_choices_are_those_of_the_stored_results():
    tuned = json.loads((ROOT / "bsa" / "tuned.json").read_text())
    expected = {}
    for name in ("attention_gpu", "attention_eight_bits"):
        measured = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
        for key, entry in tune.choices(measured).items():
            expected.setdefault(measured["device"], {}).setdefault(key, {}).update(entry)
    assert expected and {gpu: tuned.get(gpu) for gpu in expected} == expected


def make_rows(tmp_path, *options):
    parser = gpu.arguments("x", "made_up")
    args = parser.parse_args(["--smoke", "--output", str(tmp_path / "rows.json"), *options])
    return gpu.Rows(args, gpu.device_for(parser, True))


def test_what_failed_is_not_tried_again_unless_asked(tmp_path):
    def fail():
        raise RuntimeError("too\nlarge")

    rows = make_rows(tmp_path)
    assert rows.measure({"what": "a"}, lambda: {"ms": 1.0}) == {"what": "a", "ms": 1.0}
    assert rows.measure({"what": "b"}, fail) == {"what": "b", "failed": "RuntimeError: too large"}
    again = make_rows(tmp_path)
    assert not again.missing({"what": "a"}) and not again.missing({"what": "b"})
    assert again.measure({"what": "b"}, lambda: {"ms": 2.0})["failed"]
    asked = make_rows(tmp_path, "--retry")
    assert asked.missing({"what": "b"}) and not asked.missing({"what": "a"})
    assert asked.measure({"what": "b"}, lambda: {"ms": 2.0}) == {"what": "b", "ms": 2.0}
    assert len(json.loads((tmp_path / "rows.json").read_text())["rows"]) == 2


def test_a_trial_does_not_overwrite_measured_results(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    (tmp_path / "made_up.json").write_text("measured")
    parser = gpu.arguments("x", "made_up")
    gpu.Rows(parser.parse_args(["--smoke"]), gpu.device_for(parser, True)).measure({"what": "a"}, lambda: {"ms": 1.0})
    assert (tmp_path / "made_up.json").read_text() == "measured"


def test_a_row_that_hangs_ends_the_program_and_the_next_run_goes_on_behind_it(tmp_path):
    program = f"""
import sys, time
sys.path.insert(0, {str(BENCHMARKS)!r})
import gpu
gpu.ROW_SECONDS = 0.5
parser = gpu.arguments("x", "x")
args = parser.parse_args(["--smoke", "--output", {str(tmp_path / "rows.json")!r}])
rows = gpu.Rows(args, gpu.device_for(parser, True))
rows.measure({{"what": "hangs"}}, lambda: time.sleep(60))
rows.measure({{"what": "next"}}, lambda: {{"ms": 1.0}})
"""
    codes = [subprocess.run([sys.executable, "-c", program], timeout=50).returncode for _ in range(2)]
    assert codes == [gpu.CONTEXT_LOST, 0]
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert rows == [{"what": "hangs", "failed": "it did not return"}, {"what": "next", "ms": 1.0}]


def test_the_script_runs_its_steps_and_finds_what_is_there(tmp_path):
    made_up = {**ABOUT, "rows": [kernel_row("a", "kernel pointers-64x32-w4-s3", 3.0)]}
    (tmp_path / "attention_gpu.json").write_text(json.dumps(made_up))
    env = {**os.environ, "DRY": "1", "OUT": str(tmp_path), "PYTHON": sys.executable, "OMP_NUM_THREADS": "2"}
    before = (ROOT / "bsa" / "tuned.json").read_bytes()
    command = ["sh", BENCHMARKS / "h200.sh"]
    done = subprocess.run([*command, "curve", "curve"], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("cost_curve.json: 5 rows, 0 failed, 0 left out") == 2
    assert done.stdout.count("what sparse") == 2  # measured once
    assert "pointers-64x32-w4-s3" in (tmp_path / "tuned.json").read_text()
    assert (ROOT / "bsa" / "tuned.json").read_bytes() == before
    late = subprocess.run([*command, "memory"], env={**env, "SECONDS_ALLOWED": "5"}, capture_output=True, text=True)
    assert late.returncode == 1 and "no time for memory" in late.stdout and not (tmp_path / "memory.json").exists()
    unknown = subprocess.run([*command, "curves"], env=env, capture_output=True, text=True, timeout=60)
    assert unknown.returncode == 2 and "unknown step curves" in unknown.stderr


class TestEightGPUs:
    ALONE = {"size": "704p", "what": "sparse", "form": "bf16", "rows": 1, "mode": "alone", "gpus": 1, "ms": 8000.0}
    # 10 ms for each of 32 GB beyond the half, 5 ms for each of 24 GB beyond the quarter
    TWO = ALONE | {"mode": "shared", "gpus": 2, "ms": 4320.0, "counted_gb": 32.0, "peak_gib": [1.0, 1.0]}
    FOUR = ALONE | {"mode": "shared", "gpus": 4, "ms": 2120.0, "counted_gb": 24.0, "peak_gib": [1.0] * 4}

    def test_are_predicted_from_two_and_four(self):
        *measured, line = multi_gpu_table.lines([self.ALONE, self.TWO, self.FOUR])
        assert len(measured) == 2
        # 24 GB are 3/16 of all, so 8 GPUs send 7/64 of 128 GB: 14 GB, in 70 to 140 ms
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[4:9] == ["8, predicted", "1.07 to 1.14 s", "7.0 to 7.5x", "88% to 93%", "14.0 GB"]

    @pytest.mark.parametrize("rows", [[ALONE, TWO], [TWO, FOUR], [ALONE, TWO, FOUR, FOUR | {"gpus": 8}]])
    def test_are_not_where_too_little_is_known_or_they_were_measured(self, rows):
        rows = [row | {"peak_gib": [1.0] * 8} for row in rows]
        assert not any("predicted" in line for line in multi_gpu_table.lines(rows))

    def test_other_numbers_of_frames_are_other_kinds(self):
        lines = multi_gpu_table.lines([self.ALONE, self.TWO | {"frames": 189}, self.FOUR])
        assert len(lines) == 1 and "189" not in lines[0]
