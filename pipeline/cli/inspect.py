"""``python -m pipeline inspect``: how much of its attention a sparse video kept, from the record beside it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from pipeline.media.attention_record import AttentionRecord

DESCRIPTION = """\
Print the share of the true attention (softmax mass) that block sparse attention kept, and of the query-key pairs
that it computed, by layer and step. `generate --record` and the web page write the file.
"""


def add_inspect(commands: Any) -> argparse.ArgumentParser:
    """Add the command to an argparse subparsers object."""
    inspect = commands.add_parser(
        "inspect",
        help="show how much of its attention a sparse video kept",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inspect.add_argument("record", type=Path, metavar="VIDEO.attention.npz")
    return inspect


def run_inspect(args: argparse.Namespace, out: TextIO) -> dict[str, Any]:
    """Print the tables to `out` and return the report."""
    record = AttentionRecord.load(args.record)
    steps, layers, heads = record.recall.shape
    report = {"record": str(args.record), "steps": steps, "layers": layers, "heads": heads, **record.summary()}
    blocks = f"{record.q_blocks.volume} query and {record.k_blocks.volume} key blocks"
    print(f"grid      {record.grid} tokens, {blocks}, {steps} steps, {layers} layers, {heads} heads", file=out)
    print(f"recall    {report['recall']:.1%} of the attention kept, mean over everything", file=out)
    print(f"density   {report['density']:.1%} of the query-key pairs computed", file=out)
    ran = np.flatnonzero(~np.isnan(record.density).any(axis=(1, 2)))
    if len(ran) < steps:
        print(f"skipped   {steps - len(ran)} of {steps} steps, by TeaCache", file=out)
    for name in ("recall", "density"):
        values = 100 * getattr(record, name)[ran].mean(axis=2)
        if np.ptp(values) < 0.05:
            continue  # the same everywhere, as printed above
        print(f"\n{name}, %, mean over heads; one row per layer, one column per step", file=out)
        columns = np.unique(np.linspace(0, len(ran) - 1, min(len(ran), 12)).round().astype(int))
        print("layer " + "".join(f"{step + 1:>7}" for step in ran[columns]) + "    mean", file=out)
        for layer, row in enumerate(values.T):
            print(
                f"{layer + 1:>5} " + "".join(f"{row[step]:7.1f}" for step in columns) + f"{row.mean():8.1f}", file=out
            )
        print(" mean " + "".join(f"{values[step].mean():7.1f}" for step in columns), file=out)
    return report
