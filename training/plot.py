"""Draws the loss curves of the numbered runs in training/results/ as one SVG, a few in a row.

python -m training.plot --output docs/images/training.svg
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
WIDTH, HEIGHT, MARGIN = 300, 200, 42
COLUMNS = 4


def panel(name: str, curve: list[list[float]]) -> str:
    """One run: loss (logarithmic) over seconds."""
    seconds, losses = [point[1] for point in curve], [math.log10(point[2]) for point in curve]
    low, high, end = min(losses), max(losses), max(seconds)
    right, bottom = WIDTH - 14, HEIGHT - 34

    def place(second: float, loss: float) -> str:
        x = MARGIN + (right - MARGIN) * second / end
        return f"{x:.1f},{30 + (bottom - 30) * (high - loss) / (high - low):.1f}"

    points = " ".join(place(*pair) for pair in zip(seconds, losses, strict=True))
    label = 'font-size="11" fill="#64748b"'
    return (
        f'<text x="{MARGIN}" y="18" font-size="13" fill="#334155">{name}</text>'
        f'<rect x="{MARGIN}" y="30" width="{right - MARGIN}" height="{bottom - 30}" '
        'fill="none" stroke="#cbd5e1"/>'
        f'<polyline points="{points}" fill="none" stroke="#0d9488" stroke-width="1.6"/>'
        f'<text x="4" y="38" {label}>{10**high:.3f}</text>'
        f'<text x="4" y="{bottom}" {label}>{10**low:.3f}</text>'
        f'<text x="{right}" y="{bottom + 16}" {label} text-anchor="end">{end:.0f} s</text>'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    output = parser.parse_args().output
    files = sorted(RESULTS.glob("[0-9]*-*.json"), key=lambda file: int(file.stem.partition("-")[0]))
    runs = [(file.stem, json.loads(file.read_text())["curve"]) for file in files]
    rows = -(-len(runs) // COLUMNS)
    size = f'width="{COLUMNS * WIDTH}" height="{rows * HEIGHT}" viewBox="0 0 {COLUMNS * WIDTH} {rows * HEIGHT}"'
    style = 'font-family="system-ui, sans-serif" style="background:#fff"'
    panels = [
        f'<g transform="translate({i % COLUMNS * WIDTH} {i // COLUMNS * HEIGHT})">{panel(name, curve)}</g>'
        for i, (name, curve) in enumerate(runs)
    ]
    output.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>' + "".join(panels) + "</svg>\n")


if __name__ == "__main__":
    main()
