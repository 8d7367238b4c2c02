"""Writes bsa/tuned.json, which names the attention kernels for each kind of GPU, from attention.py's measurements.

    python benchmarks/tune.py                  # from attention_gpu.json and attention_eight_bits.json in results/
    python benchmarks/tune.py --input FILE...

For each chunk size it takes the variant with the smallest total time, among those that were timed on every grid; in 8
bits the time of quantising counts too. It takes the fused top-k if that was faster on every grid and picked the same
blocks. Entries of other GPUs, of chunks that were not measured, and of the other precision are kept.
"""

import argparse
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bsa.config import Grid
from bsa.variants import TUNED, tuning_key

RESULTS = Path(__file__).parent / "results"
KERNELS = {"variant": "kernel ", "eight_bits": "quantising and kernel "}  # entry in tuned.json -> how its rows begin


def choices(measured: dict) -> dict[str, dict]:
    """The entries of tuned.json for one GPU, from the content of a file with rows of attention.py."""
    by_chunk: dict[tuple[int, int], dict[str, dict[str, dict]]] = {}
    for row in measured["rows"]:
        if re.match("(quantising and )?kernel |selection", row["what"]):
            chunks = row["chunk"], row.get("chunk_k", row["chunk"])
            volumes = tuple(Grid(*map(int, chunk.split("x"))).volume for chunk in chunks)
            by_chunk.setdefault(volumes, {}).setdefault(row["grid"], {})[row["what"]] = row
    entries = {}
    for volumes, grids in sorted(by_chunk.items()):
        found = {name: _fastest(grids, begin) for name, begin in KERNELS.items()}
        entry: dict = {name: best for name, best in found.items() if best is not None}
        if "variant" in entry:
            entry["fused_top_k"] = all(map(_fused_wins, grids.values()))
        if entry:
            entries[tuning_key("bfloat16", 128, *volumes)] = entry
    return entries


def _fastest(grids: dict[str, dict[str, dict]], begin: str) -> str | None:
    """The variant with the smallest total time among the rows that begin so, or None where none ran on every grid."""
    times = {
        name: sum(rows[name]["ms"] for rows in grids.values())
        for name in {name for rows in grids.values() for name in rows if name.startswith(begin)}
        if all("ms" in rows.get(name, {}) for rows in grids.values())
    }
    return min(times, key=times.__getitem__).removeprefix(begin) if times else None


def _fused_wins(rows: dict[str, dict]) -> bool:
    fused, plain = (rows.get(f"selection, {name}", {}) for name in ("fused top-k", "sorted"))
    return fused.get("agreement", 0) > 0.9999 and fused.get("ms", float("inf")) < plain.get("ms", 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    stored = [RESULTS / "attention_gpu.json", RESULTS / "attention_eight_bits.json"]
    parser.add_argument("--input", type=Path, nargs="+", default=stored)
    parser.add_argument("--output", type=Path, default=TUNED)
    args = parser.parse_args()
    tuned = json.loads(args.output.read_text(encoding="utf-8")) if args.output.exists() else {}
    changed = False
    for source in args.input:
        measured = json.loads(source.read_text(encoding="utf-8"))
        entries = choices(measured)
        for key, entry in entries.items():
            whole = tuned.get(measured["device"], {}).get(key, {}) | entry
            if "variant" not in whole:
                print(f"{measured['device']}, {key}: left out, because only its kernels in 8 bits were measured")
                continue
            tuned.setdefault(measured["device"], {})[key] = whole
            changed = True
            print(f"{measured['device']}, {key}: " + ", ".join(f"{name} {value}" for name, value in entry.items()))
        if not entries:
            print(f"{source} has no complete set of kernel times and changes nothing")
    if changed:
        args.output.write_text(json.dumps(tuned, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
