"""Writes the measured tables into the documents, from the JSON files in benchmarks/results/.

    python benchmarks/tables.py            # rewrite docs/*.md
    python benchmarks/tables.py --check    # exit 1 if a document differs from its results

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; NAME is a function below.
"""

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def load(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def rows(head: str, lines: list[str]) -> str:
    return "\n".join([head, "|" + "---|" * (head.count("|") - 1), *lines])


def grid(sizes: list[int]) -> str:
    return "x".join(map(str, sizes))


def kernel_correctness() -> str:
    d = load("kernel_check_h200")
    lines = []
    for c in d["checks"]:
        rule = [f"sparsity {c['sparsity']}"] if c["sparsity"] is not None else []
        rule += [f"cdf {c['cdf_threshold']}"] if c["cdf_threshold"] is not None else []
        lines.append(
            f"| {grid(c['grid'])}{', ragged' if c['ragged'] else ''} | {grid(c['chunk_q'])} / {grid(c['chunk_k'])} "
            f"| {c['dim']} | {c['dtype']} | {', '.join(rule)} | {c['error']:.2e} | {c['rounded_math_error']:.2e} "
            f"| {'yes' if c['passed'] else 'NO'} |"
        )
    intro = f"{d['device']}, {d['date'][:10]}, torch {d['torch']}, triton {d['triton']}.\n\n"
    head = (
        "| token grid | chunk q / k | head size | dtype | selection | error | same math, rounded each step | passed |"
    )
    return intro + rows(head, lines)


def kernel_times() -> str:
    d = load("kernel_check_h200")
    lines = []
    for r in d["timing"]:
        rate = f"{r['tflops']:.0f}" if r["tflops"] else ""
        lines.append(f"| {r['grid']} | {r['what']} | {r['ms']:.2f} ms | {rate} |")
    first = d["timing"][0]
    intro = (
        f"{d['device']}, {d['date'][:10]}, torch {d['torch']}, triton {d['triton']}; {first['heads']} heads of "
        f"{first['dim']}, {first['dtype']}, sparsity 0.9375, chunks 4x4x4; medians.\n\n"
    )
    return intro + rows("| token grid | what | time | TFLOP/s |", lines)


def attention_cpu() -> str:
    d = load("attention_cpu")
    lines = [
        f"| {r['shape']} ({r['heads']} x {r['tokens']} x {r['dim']}) | {r['sparsity']} | {r['dense_ms']:.0f} ms "
        f"| {r['sparse_ms']:.0f} ms | {r['ratio']:.2f}x | {r['ratio_of_block_pairs']:.1f}x |"
        for r in d["rows"]
    ]
    where = f"{d['cpu']}, {d['threads']} threads, {d['date'][:10]}, torch {d['torch']}"
    intro = f"{where}, {d['dtype']}, chunks {d['chunk']}.\n\n"
    head = "| shape (heads x tokens x head size) | sparsity | dense SDPA | BSA, whole op | ratio | fewer block pairs |"
    return intro + rows(head, lines)


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


def _gpu_rows(name: str, columns: dict[str, str]) -> str:
    """A table of the rows that gpu.py saved: columns maps a key to its heading; failed rows say why."""
    d = load(name)
    lines = []
    for r in d["rows"]:
        cells = [f"{v:.3g}" if isinstance(v := r.get(key), float) else str("" if v is None else v) for key in columns]
        lines.append(f"| {' | '.join(cells)} | {r.get('failed', '').replace('|', '/')} |")
    where = ", ".join(f"{key} {d[key]}" for key in ("torch", "triton") if d[key])
    head = "| " + " | ".join(columns.values()) + " | failed |"
    return f"{d['device']}, {d['date'][:10]}, {where}.\n\n" + rows(head, lines)


def attention_gpu() -> str:
    columns = {"grid": "token grid", "chunk": "chunk", "sparsity": "sparsity", "what": "what", "ms": "ms"}
    return _gpu_rows("attention_gpu", columns | {"tflops": "TFLOP/s", "error": "error"})


def forward() -> str:
    columns = {"size": "size", "grid": "token grid", "what": "what", "ms": "ms", "first_s": "first run, s"}
    return _gpu_rows("forward", columns | {"peak_gib": "peak, GiB", "difference": "difference to plain"})


def memory() -> str:
    columns = {"size": "size", "what": "what", "ffn_tokens": "feed-forward part", "limit_gib": "limit, GiB"}
    return _gpu_rows("memory", columns | {"peak_gib": "peak, GiB"})


def cost_curve() -> str:
    columns = {"size": "size", "frames": "frames", "tokens": "tokens", "what": "what", "ms": "ms"}
    return _gpu_rows("cost_curve", columns)


MEASURED = (kernel_correctness, kernel_times, attention_cpu, embedded_checkpoint)
GPU = (attention_gpu, forward, memory, cost_curve)
TABLES = {f.__name__: f for f in (*MEASURED, *GPU)}


def table(name: str) -> str:
    try:
        return TABLES[name]()
    except FileNotFoundError:
        return "Not measured yet."


def fill(text: str) -> str:
    """`text` with every table between its markers made anew."""
    pattern = re.compile(r"<!-- table: (\w+) -->\n.*?<!-- end -->", re.DOTALL)
    return pattern.sub(lambda m: f"<!-- table: {m[1]} -->\n{table(m[1])}\n<!-- end -->", text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if something would change")
    check = parser.parse_args().check
    stale = []
    for page in sorted((ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if (new := fill(text)) != text:
            stale.append(page.name)
            if not check:
                page.write_text(new, encoding="utf-8")
    if stale:
        print(("differs from its results: " if check else "rewrote ") + ", ".join(stale))
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
