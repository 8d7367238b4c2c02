"""Draws the quality study as an SVG: likeness to the dense video against the pairs computed, each setting a dot.

The upper half shows the mean over the prompts, the lower one the worst clip, both with the noise floor. Settings that
nothing beats, with no more pairs, lie on the grey front.
"""

import math
from html import escape
from typing import NamedTuple

from curve_plot import GREY, text

WIDTH, HEIGHT = 820, 760
LEFT, RIGHT, TOP, GAP = 60, 200, 46, 56
# Scores, blocks and dense first steps and layers of the settings that are followed over the sparsities; the others are
# small dots. The colours are told apart by the colour-blind.
LINES = {
    ("mean", "4x4x4 / 4x4x4", "none"): ("means, 4x4x4", "#0072b2"),
    ("cells", "4x4x4 / 4x4x4", "none"): ("cells, 4x4x4", "#d55e00"),
    ("cells", "4x4x4 / 2x2x4", "none"): ("cells, keys 2x2x4", "#cc79a7"),
    ("cells", "2x2x4 / 2x2x4", "none"): ("cells, 2x2x4", "#009e73"),
    ("cells", "4x4x4 / 4x4x4", "1 step, 2 layers"): ("cells, 4x4x4, first dense", "#b8860b"),
}


class Panel(NamedTuple):
    """One half of the plot. figure: the column; top: its place."""

    figure: str
    title: str
    top: float


PANELS = (
    Panel("psnr", "PSNR to dense, mean over the prompts, dB", TOP),
    Panel("worst_psnr", "PSNR of the worst clip, dB", TOP + (HEIGHT - TOP + GAP) / 2 - 8),
)
TALL = (HEIGHT - TOP - GAP) / 2 - 44


def front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points, (pairs, decibels), that no other beats with as few pairs, from the fewest pairs on."""
    best: list[tuple[float, float]] = []
    for pairs, decibels in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or decibels > best[-1][1]:
            best.append((pairs, decibels))
    return best


def svg(settings: list[dict], floor: dict, about: str) -> str:
    """The plot. settings: rows of the study with their words, as `quality_tables.settings` gives them; floor: the row
    of dense attention by another kernel; about: the machine and the number of prompts."""
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="13" role="img">',
        f"<title>Likeness to the dense video against the pairs computed, {escape(about)}</title>",
        text(LEFT, 20, about),
    ]
    for panel in PANELS:
        out += _panel(panel, settings, floor[panel.figure])
    out.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "share of query-key pairs computed", "middle"))
    return "\n".join([*out, "</svg>", ""])


def _panel(panel: Panel, settings: list[dict], floor: float) -> list[str]:
    points = [(row["density"], row[panel.figure]) for row in settings]
    fewest, most = min(pairs for pairs, _ in points) / 1.15, max(pairs for pairs, _ in points) * 1.15
    decibels = [value for _, value in points] + [floor]
    low, high = 5 * math.floor(min(decibels) / 5), 5 * math.ceil((max(decibels) + 1) / 5)
    bottom = panel.top + TALL

    def x(pairs: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(pairs / fewest) / math.log(most / fewest)

    def y(value: float) -> float:
        return bottom - TALL * (value - low) / (high - low)

    def path(line: list[tuple[float, float]]) -> str:
        return "L".join(f"{x(pairs):.1f} {y(value):.1f}" for pairs, value in line)

    out = [text(LEFT, panel.top - 8, panel.title)]
    for value in range(low, high + 1, 10 if high - low > 30 else 5):
        out.append(f'<path d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}" stroke="{GREY}" stroke-opacity="0.25"/>')
        out.append(text(LEFT - 8, y(value) + 4, str(value), "end"))
    for pairs in (0.0625, 0.125, 0.25, 0.5):
        if fewest <= pairs <= most:
            out.append(text(x(pairs), bottom + 18, f"{pairs:.3g}", "middle"))
    out.append(f'<path d="M{LEFT} {y(floor):.1f}H{WIDTH - RIGHT}" stroke="{GREY}" stroke-dasharray="2 4"/>')
    out.append(text(WIDTH - RIGHT + 8, y(floor) + 4, "noise floor"))
    out.append(f'<path d="M{path(front(points))}" fill="none" stroke="{GREY}" stroke-width="5" stroke-opacity="0.3"/>')
    for row in settings:
        place = f'cx="{x(row["density"]):.1f}" cy="{y(row[panel.figure]):.1f}"'
        name = f"{row['scores']}, {row['blocks']}, dense first: {row['first']}, sparsity {row['sparsity']}"
        said = escape(f"{name}: {row[panel.figure]:.1f} dB at {row['density']:.1%}")
        out.append(f'<circle {place} r="2.5" fill="{GREY}" fill-opacity="0.6"><title>{said}</title></circle>')
    return out + _lines(panel, settings, x, y, path)


def _lines(panel: Panel, settings: list[dict], x, y, path) -> list[str]:
    """The settings of `LINES`, with their names at the right."""
    out, labels = [], []
    for key, (label, colour) in LINES.items():
        line = sorted(
            (row["density"], row[panel.figure])
            for row in settings
            if (row["scores"], row["blocks"], row["first"]) == key
        )
        if not line:
            continue
        out.append(f'<path d="M{path(line)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{x(pairs):.1f}" cy="{y(value):.1f}" r="3.5" fill="{colour}"/>' for pairs, value in line]
        labels.append((y(line[-1][1]) + 4, label, colour))
    below = -math.inf
    for wanted, label, colour in sorted(labels):
        below = max(wanted, below + 16)
        out.append(text(WIDTH - RIGHT + 8, below, label, colour=colour))
    return out
