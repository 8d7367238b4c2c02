"""Times block sparse attention on the CPU together with dense attention, in one run.

    python benchmarks/attention_cpu.py

The sparse time covers the whole public operation: layout, selection, gather, attention, layout back. Dense is
`bsa.full_attention` on the same tensors, beside PyTorch's F.scaled_dot_product_attention. Methods take turns, and the
least CPU time of each counts, divided by the threads, so that a busy machine changes little. Prints a table and writes
benchmarks/results/attention_cpu.json.
"""

import argparse
import itertools
import json
import os
import platform
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

# Waiting threads sleep. Spinning ones would slow both methods several times over if another program runs at the same
# time. OpenMP reads this when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from processor import cpu_name

from bsa import BSAConfig, Grid, block_sparse_attention, full_attention

SHAPES = {
    "the embedded checkpoint, 4k tokens": (4, Grid(16, 16, 16), 64),
    "8k tokens, 8 heads": (8, Grid(8, 32, 32), 64),
    "ragged on every axis": (4, Grid(15, 17, 18), 64),
}
SPARSITIES = (0.5, 0.75, 0.875, 0.9375)
RESULTS = Path(__file__).parent / "results" / "attention_cpu.json"


def seconds(function) -> float:
    start = time.process_time()
    function()
    return (time.process_time() - start) / torch.get_num_threads()


@torch.inference_mode()
def measure(name: str, rounds: int, dtype: torch.dtype) -> list[dict]:
    heads, grid, dim = SHAPES[name]
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, grid.volume, dim).to(dtype) for _ in range(3))
    methods = {"sdpa": lambda: F.scaled_dot_product_attention(q, k, v), None: lambda: full_attention(q, k, v)}
    for sparsity in SPARSITIES:
        config = BSAConfig(sparsity)
        methods[sparsity] = lambda config=config: block_sparse_attention(q, k, v, grid, config, backend="torch")
    times = {key: [] for key in methods}
    for number in range(rounds + 1):
        for key, function in methods.items():
            taken = seconds(function)
            if number:  # the first round warms up
                times[key].append(taken)
    dense = min(times[None])
    rows = []
    for sparsity in SPARSITIES:
        sparse, plan = min(times[sparsity]), BSAConfig(sparsity).blocks(grid)
        rows.append(
            {
                "shape": name,
                "heads": heads,
                "grid": str(grid),
                "tokens": grid.volume,
                "dim": dim,
                "dtype": str(dtype).removeprefix("torch."),
                "sparsity": sparsity,
                "kept_blocks": plan.kept,
                "key_blocks": plan.k_blocks.volume,
                "sdpa_ms": 1e3 * min(times["sdpa"]),
                "dense_ms": 1e3 * dense,
                "sparse_ms": 1e3 * sparse,
                "ratio": dense / sparse,
                "ratio_of_block_pairs": 1 / plan.density,
            }
        )
    return rows


def machine(args: argparse.Namespace) -> dict:
    """What a report says of the machine and the run. args: with threads and rounds."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "threads": args.threads,
        "rounds": args.rounds,
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    about = machine(args) | {"omp_wait_policy": os.environ["OMP_WAIT_POLICY"], "chunk": "4x4x4"}
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(
        f"{'shape':36} {'dtype':9} {'heads':>5} {'sparsity':>8} {'SDPA ms':>9} {'dense ms':>9} {'sparse ms':>9} "
        f"{'ratio':>6} {'ideal':>6}"
    )
    rows = []
    for name, dtype in itertools.product(SHAPES, (torch.float32, torch.bfloat16)):
        for row in measure(name, args.rounds, dtype):
            rows.append(row)
            print(
                f"{name:36} {row['dtype']:9} {row['heads']:5} {row['sparsity']:8} {row['sdpa_ms']:9.1f} "
                f"{row['dense_ms']:9.1f} {row['sparse_ms']:9.1f} {row['ratio']:6.2f} "
                f"{row['ratio_of_block_pairs']:6.2f}",
                flush=True,
            )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
