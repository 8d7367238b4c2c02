"""Writes the scores of training/results/evaluation.json into docs/embedded_checkpoint.md.

python -m training.scores            # rewrite the part between the two "scores" markers
python -m training.scores --check    # exit 1 if the document differs from the results
"""

from __future__ import annotations

import argparse
import json
import sys
from math import sqrt
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "evaluation.json"
DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "embedded_checkpoint.md"
BEGIN, END = "<!-- scores -->\n", "<!-- end of scores -->"
NAMES = ("colour", "shape", "motion", "all three")


def interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share seen in `count` trials."""
    z = 1.96
    middle, spread = share + z * z / (2 * count), z * sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    low, high = ((middle + sign * spread) / (1 + z * z / count) for sign in (-1, 1))
    return low, high


def table(report: dict[str, Any]) -> str:
    count = report["prompts"]

    def line(what: str, scores: dict[str, float], clips: int) -> str:
        cells = [f"{scores[name]:.{1 if clips > 100 else 0}%}" for name in NAMES]
        low, high = interval(scores["all three"], clips)
        distance = f" {scores['psnr to dense']:.1f} dB" if "psnr to dense" in scores else ""
        return f"| {what} | {clips} | {' | '.join(cells)} | {low:.0%} to {high:.0%} |{distance} |"

    chance = [report["chance"][name] for name in NAMES[:3]]
    chance.append(chance[0] * chance[1] * chance[2])
    lines = [
        f"{report['settings']}; {report['date'][:10]}, {report['device']}, torch {report['torch']}.",
        "",
        "| | clips | " + " | ".join(NAMES) + " | all three, 95 % interval | PSNR to dense |",
        "|---|---|---|---|---|---|---|---|",
        "| guessing | | " + " | ".join(f"{share:.1%}" for share in chance) + " | | |",
    ]
    held_out = report["held-out renders"]
    lines.append(line("other renders: what the classifier can tell", held_out, held_out["clips"]))
    for name, scores in report["scores"].items():
        label = {"render": "renders of the same scenes, through the VAE", "dense": "**dense**"}.get(name)
        lines.append(line(label or f"**sparse, sparsity {name.removeprefix('bsa-')}**", scores, count))
    return "\n".join([*lines, *_tasks(report.get("tasks", {}), count)]) + "\n"


def _tasks(tasks: dict[str, dict[str, float]], count: int) -> list[str]:
    """The table of the videos that begin with given frames."""
    if not tasks:
        return []
    begun = {"picture": "from a picture", "continuation": "on from 13 frames"}
    lines = [
        "",
        "| | clips | " + " | ".join(NAMES) + " | given frames, PSNR (worst) | seam (worst) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, scores in tasks.items():
        task, how = name.split()
        how = "dense" if how == "dense" else f"sparsity {how.removeprefix('bsa-')}"
        shares = " | ".join(f"{scores[part]:.0%}" for part in NAMES)
        given = f"{scores['given psnr']:.1f} dB ({scores['given psnr, worst']:.1f})"
        seams = f"{scores['seam']:.2f} ({scores['seam, worst']:.2f})"
        lines.append(f"| {begun[task]}, {how} | {count} | {shares} | {given} | {seams} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    text = DOCUMENT.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    written = before + BEGIN + table(json.loads(RESULTS.read_text())) + END + after
    if check:
        return int(written != text)
    DOCUMENT.write_text(written, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
