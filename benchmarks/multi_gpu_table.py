"""The table of benchmarks/multi_gpu.py's rows: each beside the same forward pass on one GPU."""


PREDICTED = 8


def lines(measured: list[dict]) -> list[str]:
    """One line for each forward pass on several GPUs. Rows without a counterpart on one GPU are left out. A last line
    for each kind predicts what was not measured."""
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
            f"| {_size(row)} | {what} | {row['form']} | {row['rows']} | {row['gpus']} | {row['ms'] / 1e3:.2f} s "
            f"| {factor:.2f}x | {factor / row['gpus']:.0%} | {sent} | {max(row['peak_gib'][: row['gpus']]):.1f} GiB "
            f"| {error} | {same} |"
        )
    return found + _predicted(measured)


def _predicted(measured: list[dict]) -> list[str]:
    """`PREDICTED` GPUs, for the kinds of which two and more were measured and so many were not.

    A pass on P of them takes its seconds on one over P, and a time for each byte that a GPU sends. That time is between
    the smallest and the largest that the measured numbers of GPUs show.
    """
    kinds: dict[tuple, dict[int, dict]] = {}
    for row in measured:
        if row.get("mode") in ("alone", "shared") and "ms" in row and row.get("rows") == 1:
            kinds.setdefault(_case(row), {})[row["gpus"]] = row
    found = []
    for (size, _, what, form, rows), by_count in kinds.items():
        shared = [row for count, row in by_count.items() if count > 1 and "counted_gb" in row]
        if 1 not in by_count or len(shared) < 2 or PREDICTED in by_count:
            continue
        alone = by_count[1]["ms"]
        rates = [(row["ms"] - alone / row["gpus"]) / row["counted_gb"] for row in shared]
        # a GPU sends (P - 1) / P^2 of all tokens of each layer
        gb = shared[-1]["counted_gb"] * _part(PREDICTED) / _part(shared[-1]["gpus"])
        fast, slow = (alone / PREDICTED + rate * gb for rate in (min(rates), max(rates)))
        label = _size(shared[0] | {"size": size})
        found.append(
            f"| {label} | {what} | {form} | {rows} | {PREDICTED}, predicted | {fast / 1e3:.2f} to {slow / 1e3:.2f} s "
            f"| {alone / slow:.1f} to {alone / fast:.1f}x | {alone / slow / PREDICTED:.0%} to "
            f"{alone / fast / PREDICTED:.0%} | {gb:.1f} GB | - | - | - |"
        )
    return found


def _part(gpus: int) -> float:
    return (gpus - 1) / gpus**2


def _size(row: dict) -> str:
    """Frames are named where they are not the usual 93, which older results leave out."""
    frames = row.get("frames", 93)
    return row["size"] if frames == 93 else f"{row['size']}, {frames} frames"


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
    return row["size"], row.get("frames", 93), row["what"], row["form"], row["rows"]
