"""The table of benchmarks/multi_gpu.py's rows: each beside the same forward pass on one GPU."""


def lines(measured: list[dict]) -> list[str]:
    """One line for each forward pass on several GPUs. Rows without a counterpart on one GPU are left out."""
    alone = {_case(row): row["ms"] for row in measured if row.get("mode") == "alone" and "ms" in row}
    found = []
    for row in measured:
        if row.get("mode") not in ("shared", "waiting") or "ms" not in row or _case(row) not in alone:
            continue
        factor = alone[_case(row)] / row["ms"]
        sent = "-" if "sent_gb" not in row else f"{row['sent_gb']:.1f} GB"
        sent += "" if "counted_gb" not in row else f" ({row['counted_gb']:.1f})"
        what = row["what"] + (", no overlap" if row["mode"] == "waiting" else "")
        same = "-" if "same_blocks" not in row else " / ".join(f"{share:.2%}" for share in row["same_blocks"])
        error = f"{row['error']:.1e}" if "error" in row else "-"
        found.append(
            f"| {row['size']} | {what} | {row['form']} | {row['rows']} | {row['gpus']} | {row['ms'] / 1e3:.2f} s "
            f"| {factor:.2f}x | {factor / row['gpus']:.0%} | {sent} | {max(row['peak_gib'][: row['gpus']]):.1f} GiB "
            f"| {error} | {same} |"
        )
    return found


HEAD = (
    "| size | attention | weights | rows | GPUs | forward pass | speed-up | of ideal | sent by a GPU (counted) "
    "| peak of a GPU | distance to one GPU | same blocks |"
)


def exchange(measured: list[dict]) -> str:
    """A sentence on the exchange alone, or nothing."""
    row = next((row for row in measured if row["what"] == "exchange" and "ms" in row), None)
    if row is None:
        return ""
    return (
        f"One exchange of the queries of 704p there and back, alone: {row['ms']:.2f} ms on {row['gpus']} GPUs, "
        f"{row['gb_per_s']:.0f} GB/s from each."
    )


def _case(row: dict) -> tuple:
    return row["size"], row["what"], row["form"], row["rows"]
