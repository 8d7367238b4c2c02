"""Writes bsa/tuned.json, which names the attention kernels for each kind of GPU, from attention.py's measurements.

    python benchmarks/tune.py                  # from benchmarks/results/attention_gpu.json
    python benchmarks/tune.py --input FILE

For each chunk size it takes the variant with the smallest total time, among those that were timed on every grid. It
takes the fused top-k if that was faster on every grid and picked the same blocks. Entries of other GPUs, and of chunks
that were not measured, are kept.
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


def choices(measured: dict) -> dict[str, dict]:
    """The entries of tuned.json for one GPU, from the content of attention_gpu.json."""
    by_chunk: dict[tuple[int, int], dict[str, dict[str, dict]]] = {}
    for row in measured["rows"]:
        if re.match("kernel |selection", row["what"]):
            chunks = row["chunk"], row.get("chunk_k", row["chunk"])
            volumes = tuple(Grid(*map(int, chunk.split("x"))).volume for chunk in chunks)
            by_chunk.setdefault(volumes, {}).setdefault(row["grid"], {})[row["what"]] = row
    entries = {}
    for volumes, grids in sorted(by_chunk.items()):
        times = {
            name: sum(rows[name]["ms"] for rows in grids.values())
            for name in {name for rows in grids.values() for name in rows if name.startswith("kernel ")}
            if all("ms" in rows.get(name, {}) for rows in grids.values())
        }
        if not times:
            continue
        best = min(times, key=times.__getitem__)
        entries[tuning_key("bfloat16", 128, *volumes)] = {
            "variant": best.removeprefix("kernel "),
            "fused_top_k": all(map(_fused_wins, grids.values())),
        }
    return entries


def _fused_wins(rows: dict[str, dict]) -> bool:
    fused, plain = (rows.get(f"selection, {name}", {}) for name in ("fused top-k", "sorted"))
    return fused.get("agreement", 0) > 0.9999 and fused.get("ms", float("inf")) < plain.get("ms", 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, default=RESULTS / "attention_gpu.json")
    parser.add_argument("--output", type=Path, default=TUNED)
    args = parser.parse_args()
    measured = json.loads(args.input.read_text(encoding="utf-8"))
    entries = choices(measured)
    tuned = json.loads(args.output.read_text(encoding="utf-8")) if args.output.exists() else {}
    if entries:
        tuned.setdefault(measured["device"], {}).update(entries)
        args.output.write_text(json.dumps(tuned, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for key, entry in entries.items():
        print(f"{measured['device']}, {key}: {entry['variant']}{', fused top-k' if entry['fused_top_k'] else ''}")
    if not entries:
        print(f"{args.input} has no complete set of kernel times; {args.output.name} stays as it is")


if __name__ == "__main__":
    main()
