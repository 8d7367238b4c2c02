"""Writes measured tables and plots into the documents, from the JSON files in benchmarks/results/.

    python benchmarks/tables.py            # rewrite docs/*.md
    python benchmarks/tables.py --check    # exit 1 if a document differs from its results

A table is placed between `<!-- table: NAME -->` and `<!-- end -->`. NAME is a function below.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import multi_gpu_table
import quality_tables
from curve_plot import crossing, svg
from table_parts import grid, machine, rows

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"


def load(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def kernel_correctness() -> str:
    d = load("kernel_check")
    lines = []
    for c in d["checks"]:
        rule = [f"sparsity {c['sparsity']}"] if c["sparsity"] is not None else []
        rule += [f"cdf {c['cdf_threshold']}"] if c["cdf_threshold"] is not None else []
        lines.append(
            f"| {grid(c['grid'])}{', ragged' if c['ragged'] else ''} | {grid(c['chunk_q'])} / {grid(c['chunk_k'])} "
            f"| {c['dim']} | {c['dtype']} | {', '.join(rule)} | {c['error']:.2e} | {c['rounded_math_error']:.2e} "
            f"| {c['variant']} | {'yes' if c['passed'] else 'NO'} |"
        )
    intro = f"{d['device']}, {d['date'][:10]}, torch {d['torch']}, triton {d['triton']}.\n\n"
    head = (
        "| token grid | chunk q / k | head size | dtype | selection | error | same math, rounded each step "
        "| kernel | passed |"
    )
    return intro + rows(head, lines)


def attention_cpu() -> str:
    d = load("attention_cpu")
    lines = [
        f"| {r['shape']} ({r['heads']} x {r['tokens']} x {r['dim']}) | {r['dtype']} | {r['backend']} | {r['sparsity']} "
        f"| {r['sdpa_ms']:.0f} ms | {r['dense_ms']:.0f} ms | {r['sparse_ms']:.0f} ms | {r['ratio']:.2f}x "
        f"| {r['ratio_of_block_pairs']:.1f}x |"
        for r in d["rows"]
    ]
    where = f"{d['cpu']}, {d['threads']} threads, load average {d['load']:.0f}, {d['date'][:10]}, torch {d['torch']}"
    intro = f"{where}, chunks {d['chunk']}. Least CPU time of {d['rounds']} rounds, by the number of threads.\n\n"
    head = (
        "| shape (heads x tokens x head size) | dtype | backend | sparsity | PyTorch's dense | ours, dense "
        "| BSA, whole op | ratio | fewer block pairs |"
    )
    return intro + rows(head, lines)


def precision_cpu() -> str:
    d = load("precision_cpu")
    lines = []
    for r in d["rows"]:
        what = f"{r['what']}, {r['forward']}" if "forward" in r else r["what"]
        shares = ", ".join(f"{kind} {share:.0%}" for kind, share in (r.get("shares") or {}).items())
        distance = f"{r['distance']:.1e}" if r.get("distance") else ""
        lines.append(f"| {what} | {r['precision']} | {r['cpu_s']:.2f} s | {distance} | {shares} |")
    ratios = "; ".join(f"{name} {ratio:.2f}x" for name, ratio in d["ratios"].items())
    where = f"{d['cpu']} with {', '.join(d['instructions']) or 'neither instruction'}, {d['threads']} threads"
    intro = f"{where}, load average {d['load']:.0f}, {d['date'][:10]}, torch {d['torch']}.\n\n"
    head = "| one pass at 4,096 tokens | precision | CPU time | distance to fp32 | time by operator |"
    return f"{intro}{rows(head, lines)}\n\nDense over sparse (0.75) forwards, CPU time: {ratios}."


def embedded_checkpoint() -> str:
    d = load("embedded_checkpoint")
    lines = []
    for r in d["rows"]:
        dense, sparse = r["dense"], r["sparse"]
        lines.append(
            f"| {r['prompt']} | {dense['denoise']:.1f} + {dense['decode']:.1f} s "
            f"| {sparse['denoise']:.1f} + {sparse['decode']:.1f} s | {r['wall']:.1f} s "
            f"| {r['speedup']:.2f}x | {r['psnr']:.1f} dB | {r['ssim']:.3f} |"
        )
    intro = f"{d['machine']}, {d['threads']} threads, {d['date'][:10]}, torch {d['torch']}: {d['settings']}.\n\n"
    head = "| prompt | dense: denoise + decode | sparse: denoise + decode | both | denoising speed-up | PSNR | SSIM |"
    sheets = [f"{r['prompt']}:\n\n![{r['prompt']}](images/embedded/{r['image']})" for r in d["rows"]]
    return "\n\n".join([intro + rows(head, lines), "Eight of the 61 frames, dense above sparse.", *sheets])


def page_start() -> str:
    d = load("page")
    start = d["start"]
    lines = [
        f"| `python app.py` until the address is printed | {start['listening']:.1f} s |",
        f"| until the first paint in Chromium | {start['painted']:.1f} s |",
        f"| until Generate can be pressed | {start['usable']:.1f} s |",
        f"| first paint after the address is opened | {1000 * start['paint']:.0f} ms |",
        f"| processor time of the serving process until then | {start['processor']:.1f} s |",
        f"| memory of the serving process (RSS) | {start['memory'] / 2**20:.0f} MiB |",
    ]
    return f"{_pagemachine(d)}; medians of {d['starts']} starts.\n\n" + rows("| what | measured |", lines)


def page_load() -> str:
    d = load("page")
    r = d["load"]
    lines = [
        f"| duration | {r['seconds']:.0f} s |",
        f"| videos lost or mixed up | {r['lost']} |",
        f"| memory of the server, before and after | {r['memory_before'] / 2**20:.0f} and "
        f"{r['memory_after'] / 2**20:.0f} MiB |",
    ]
    for name, when in (("idle_ms", "nothing runs"), ("busy_ms", "all of this runs")):
        ms = r[name]
        lines.append(
            f"| a press that the server answers, while {when} ({ms['count']} presses) | median {ms['p50']:.0f} ms, "
            f"90 % below {ms['p90']:.0f} ms, 99 % below {ms['p99']:.0f} ms |"
        )
    what = f"{r['clients']} clients, {r['jobs']} videos, {r['cancels']} cancelled, {r['reloads']} reloads"
    return f"{_pagemachine(d)}: {what}.\n\n" + rows("| what | measured |", lines)


def soak_engines() -> str:
    return soak("soak_engines")


def soak(name: str = "soak") -> str:
    d = load(name)
    waiting, ends = d["waiting"], d["ends"]
    ms, made = waiting["page_ms"], f"{ends['done']}, {ends['failed_by_a_kill']}, {ends['lost']}, {d['doubled']}"
    lines = [
        f"| jobs made, failed with the engine, lost, made twice | {made} of {sum(ends.values())} |",
        f"| a page's request while {waiting['waiting']} jobs wait ({ms['count']} requests) | median "
        f"{ms['p50']:.0f} ms, 90 % below {ms['p90']:.0f} ms, 99 % below {ms['p99']:.0f} ms |",
    ]
    for name, when in (("busy", "the first jobs are made"), ("waiting", "they wait"), ("drained", "those are made")):
        late = d[name]["event_loop_late_ms"]
        lines.append(
            f"| delay of the event loop while {when} | median {late['p50']:.1f} ms, 99 % below {late['p99']:.0f} ms, "
            f"most {late['max']:.0f} ms |"
        )
    counts = ("memory in MiB", "memory", 2**20), ("file handles", "handles", 1), ("threads", "threads", 1)
    for what, key, unit in counts:
        values = ", ".join(f"{d[when][key] / unit:.0f}" for when in ("start", "busy", "waiting", "drained"))
        lines.append(f"| {what}: at the start, after the first jobs, with a full queue, at the end | {values} |")
    lines.append(f"| processor while they wait and pages are fetched | {100 * waiting['processor']:.0f} % of a core |")
    jobs = f"{d['clients']} clients, {d['jobs']} jobs, {d['cancels']} cancelled, {d['reloads']} reloads"
    rest = f"{d['kills']} engines killed, then {waiting['waiting']} jobs that wait"
    machine = f"{_pagemachine(d)}, gradio {d['versions']['gradio']}"
    machine += f", {d['engines']} engines" if d.get("engines", 1) > 1 else ""
    return f"{machine}: {jobs}, {rest}.\n\n" + rows("| what | measured |", lines)


def _pagemachine(d: dict) -> str:
    return f"{d['cpu']}, {d['cores']} cores with a load average of {d['load_average']:.0f}, {d['date'][:10]}"


def _gpu_rows(name: str, columns: dict[str, str], keep: Callable[[dict], bool] = lambda row: True) -> str:
    """A table of the rows that gpu.py saved. columns: key -> heading. Failed rows give the reason."""
    d, lines = load(name), []
    if not (kept := [row for row in d["rows"] if keep(row)]):
        raise FileNotFoundError(f"{name}.json has no such rows yet")
    for r in kept:
        cells = [number(r.get(key)) for key in columns]
        lines.append(f"| {' | '.join(cells)} | {r.get('failed', '').replace('|', '/')} |")
    head = "| " + " | ".join(columns.values()) + " | failed |"
    return f"{machine(d)}\n\n" + rows(head, lines)


def number(value: object) -> str:
    """A number with three digits, or with all digits before the decimal point if there are more. "" for None."""
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _pivot(name: str, kept: list[dict], line: str, columns: list[str], cell: Callable[[dict], str]) -> str:
    """A table with one row per value of `line` and one column per combination of values of `columns`."""
    if not kept:
        raise FileNotFoundError(f"{name}.json has no such rows yet")
    heads = list(dict.fromkeys(", ".join(str(row[key]) for key in columns) for row in kept))
    cells: dict[str, dict[str, str]] = {}
    for row in kept:
        cells.setdefault(str(row[line]), {})[", ".join(str(row[key]) for key in columns)] = cell(row)
    lines = [f"| {what} | {' | '.join(found.get(head, '') for head in heads)} |" for what, found in cells.items()]
    return f"{machine(load(name))}\n\n" + rows(f"| {line} | {' | '.join(heads)} |", lines)


def _timed(row: dict) -> str:
    if "failed" in row:
        return f"no: {row['failed'].strip().rstrip(':').replace('|', '/')}"
    return f"{number(row['ms'])} ms" + (f", {row['tflops']:.0f}" if row.get("tflops") else "")


def attention_peers() -> str:
    kept = [r for r in load("attention_gpu")["rows"] if r["sparsity"] == 0.9375 and r["chunk"] == "4x4x4"]
    kept = [r for r in kept if not r["what"].startswith(("kernel", "selection"))]
    return _pivot("attention_gpu", kept, "what", ["grid"], _timed)


def attention_variants() -> str:
    kept = [r for r in load("attention_gpu")["rows"] if r["what"].startswith(("kernel", "selection"))]
    return _pivot("attention_gpu", kept, "what", ["grid", "chunk"], _timed)


def attention_small() -> str:
    kept = [row | {"chunks": f"{row['chunk']} / {row['chunk_k']}"} for row in load("attention_small")["rows"]]
    return _pivot("attention_small", kept, "what", ["grid", "chunks"], _timed)


def attention_eight_bits() -> str:
    kept = load("attention_eight_bits")["rows"]
    return _pivot(
        "attention_eight_bits",
        kept,
        "what",
        ["grid"],
        lambda r: _timed(r) + (f", {r['error']:.4f}" if "error" in r else ""),
    )


def attention_sweep() -> str:
    found = load("attention_gpu")["rows"]
    dense = {r["grid"]: r["ms"] for r in found if r["what"] == "dense, cuDNN" and "ms" in r}
    kept = [r for r in found if r["what"] == "ours, means given" and r["grid"] == "24x44x80"]
    return _pivot(
        "attention_gpu",
        sorted(kept, key=lambda r: r["sparsity"]),
        "chunk",
        ["sparsity"],
        lambda r: _timed(r) + (f", {dense[r['grid']] / r['ms']:.1f}x" if r["grid"] in dense else ""),
    )


def kernel_limits() -> str:
    kept = load("kernel_limits")["rows"]
    return _pivot("kernel_limits", kept, "what", ["list"], lambda r: f"{_timed(r)}, {r['tb_per_s']:.1f} TB/s")


def fused() -> str:
    columns = {"what": "what", "ms": "ms", "gb_per_s": "GB/s", "pytorch_ms": "PyTorch, ms", "tflops": "TFLOP/s"}
    columns |= {"bf16_ms": "bf16, ms", "accurate_ms": "fp32 sums, ms", "error": "error"}
    return _gpu_rows("fused", columns | {"accurate_error": "error, fp32 sums"})


def forward() -> str:
    columns = {"size": "size", "grid": "token grid", "what": "what", "ms": "ms", "first_s": "first run, s"}
    columns |= {"held_gib": "weights, GiB", "peak_gib": "peak, GiB", "difference": "difference to plain"}
    return _gpu_rows("forward", columns | {"kernel": "kernel"}, lambda row: row["size"] != "small")


def forward_profile() -> str:
    d = load("forward_profile")
    total = sum(row["ms"] for row in d["rows"])
    lines = [f"| {row['what']} | {number(row['ms'])} | {100 * row['ms'] / total:.1f} % |" for row in d["rows"]]
    lines.append(f"| **all** | {number(total)} | |")
    return f"{machine(d)}\n\n" + rows("| kernels | ms | share |", lines)


def numerics() -> str:
    columns = {"grid": "token grid", "what": "what", "error": "distance to fp32"}
    return _gpu_rows("forward", columns, lambda row: row["size"] == "small")


def memory() -> str:
    columns = {"size": "size", "what": "what", "form": "weights", "rows": "rows", "ffn_tokens": "feed-forward part"}
    columns |= {"card_gib": "card, GiB", "held_gib": "held before, GiB", "peak_gib": "peak, GiB", "ms": "ms"}
    return _gpu_rows("memory", columns)


def cost_curve() -> str:
    d = load("cost_curve")
    plot = DOCS / "images" / "cost_curve.svg"
    found = crossing(d["rows"])
    if found is None:
        words = "BSA does not pay at any of these sizes."
    elif found[0] <= min(row["tokens"] for row in d["rows"] if row["what"] == "sparse"):
        words = f"BSA pays at every size measured, from {found[0]:,.0f} tokens on."
    else:
        words = f"BSA pays from about {found[0]:,.0f} tokens on, where one forward takes {found[1]:.2f} s."
    columns = {"size": "size", "frames": "frames", "tokens": "tokens", "what": "what", "ms": "ms"}
    table = _gpu_rows("cost_curve", columns)
    return f"{words}\n\n![Seconds of one forward against frames](images/{plot.name})\n\n{table}"


def quality() -> str:
    return quality_tables.psnr(load("quality"))


def quality_details() -> str:
    return quality_tables.details(load("quality"))


def quality_layers() -> str:
    return quality_tables.layers(load("quality"))


def selection_methods() -> str:
    return quality_tables.methods(load("selection_methods"))


def selection_times() -> str:
    return quality_tables.times(load("selection"))


def selection_forward() -> str:
    return quality_tables.forward(load("selection"))


def teacache() -> str:
    return quality_tables.teacache(load("teacache"))


def multi_gpu() -> str:
    d = load("multi_gpu")
    gpus = f"{len(d['gpus'])} x {d['gpus'][0]}, NCCL {d['nccl']}" if d["gpus"] else "one CPU"
    words = f"{machine(d)} {gpus}. {multi_gpu_table.exchange(d['rows'])}".rstrip()
    return f"{words}\n\n" + rows(multi_gpu_table.HEAD, multi_gpu_table.lines(d["rows"]))


def pictures() -> dict[Path, str]:
    """Plots of the measurements, by file."""
    drawn = {}
    for name, draw in {"cost_curve": svg, "quality": quality_tables.plot}.items():
        with suppress(FileNotFoundError):
            drawn[DOCS / "images" / f"{name}.svg"] = draw(load(name))
    return drawn


CPU = (attention_cpu, precision_cpu, embedded_checkpoint)
MEASURED = (kernel_correctness, *CPU, page_start, page_load, soak, soak_engines)
ATTENTION = (attention_peers, attention_variants, attention_small, attention_eight_bits, attention_sweep, kernel_limits)
GPU = (fused, forward, forward_profile, numerics, memory, cost_curve, multi_gpu)
QUALITY = (quality, quality_details, quality_layers, selection_methods, selection_times, selection_forward, teacache)
TABLES = {f.__name__: f for f in (*MEASURED, *ATTENTION, *GPU, *QUALITY)}


def table(name: str) -> str:
    try:
        return TABLES[name]()
    except FileNotFoundError:
        return "Not measured yet."


def fill(text: str) -> str:
    """Return `text` with every table between markers replaced by a new one."""
    pattern = re.compile(r"<!-- table: (\w+) -->\n.*?<!-- end -->", re.DOTALL)
    return pattern.sub(lambda m: f"<!-- table: {m[1]} -->\n{table(m[1])}\n<!-- end -->", text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if something would change")
    check = parser.parse_args().check
    stale = []
    made = {page: fill(page.read_text(encoding="utf-8")) for page in sorted(DOCS.glob("*.md"))} | pictures()
    for page, new in made.items():
        if not page.exists() or page.read_text(encoding="utf-8") != new:
            stale.append(page.name)
            if not check:
                page.write_text(new, encoding="utf-8")
    if stale:
        print(("differs from its results: " if check else "rewrote ") + ", ".join(stale))
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
