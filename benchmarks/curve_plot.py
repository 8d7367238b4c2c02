"""Draws the cost curve as an SVG: seconds of one forward pass by frames, one colour per size, dense dashed."""

import math
from html import escape

WIDTH, HEIGHT = 820, 500
LEFT, RIGHT, TOP, BOTTOM = 64, 110, 52, 54
COLOURS = {
    "480p": "#0072b2",
    "704p": "#d55e00",
    "720p": "#009e73",
    "1080p": "#cc79a7",
}  # distinguishable by the colour-blind
GREY = "#767676"  # readable on white and on black


def crossing(rows: list[dict]) -> tuple[float, float] | None:
    """The number of tokens from which sparse is faster, and its seconds there.

    Interpolated log-log between the last measurement where sparse loses and the next one. If sparse always wins, it is
    the smallest measurement; if it loses for the largest video, None.
    """
    both: dict[int, dict[str, float]] = {}
    for row in rows:
        if "ms" in row:
            both.setdefault(row["tokens"], {})[row["what"]] = row["ms"] / 1e3
    points = [(tokens, t["sparse"], t["dense"]) for tokens, t in sorted(both.items()) if len(t) == 2]
    losses = [place for place, (_, sparse, dense) in enumerate(points) if sparse >= dense]
    if not points or losses and losses[-1] == len(points) - 1:
        return None
    if not losses:
        return points[0][0], points[0][1]
    (n0, s0, d0), (n1, s1, d1) = points[losses[-1]], points[losses[-1] + 1]
    gap0, gap1 = math.log(s0 / d0), math.log(s1 / d1)
    share = gap0 / (gap0 - gap1)
    return math.exp(math.log(n0) + share * math.log(n1 / n0)), math.exp(math.log(s0) + share * math.log(s1 / s0))


def _ticks(low: float, high: float) -> list[float]:
    values = [m * 10.0**e for e in range(-4, 5) for m in (1, 2, 5)]
    return [value for value in values if low <= value <= high]


def text(at_x: float, at_y: float, words: str, anchor: str = "start", colour: str = GREY) -> str:
    return f'<text x="{at_x:.1f}" y="{at_y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>'


def svg(measured: dict) -> str:
    """The plot for the content of cost_curve.json."""
    lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in measured["rows"]:
        if "ms" in row:
            lines.setdefault((row["size"], row["what"]), []).append((row["frames"], row["ms"] / 1e3))
    frames = sorted({f for line in lines.values() for f, _ in line})
    seconds = [s for line in lines.values() for _, s in line]
    low, high = 10 ** (math.log10(min(seconds)) - 0.1), 10 ** (math.log10(max(seconds)) + 0.1)

    def x(f: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * f / max(frames)

    def y(s: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * math.log(high / s) / math.log(high / low)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="13" role="img">',
        f"<title>Seconds of one forward against frames, {escape(measured['device'])}</title>",
        text(LEFT, 20, f"One forward, seconds. {measured['device']}, batch 1, sparsity 0.9375, chunks 4x4x4"),
        f'<path d="M{LEFT} 34h28" stroke="{GREY}" stroke-width="2"/>',
        text(LEFT + 34, 38, "BSA"),
        f'<path d="M{LEFT + 90} 34h28" stroke="{GREY}" stroke-width="2" stroke-dasharray="5 4"/>',
        text(LEFT + 124, 38, "dense"),
    ]
    for value in _ticks(low, high):
        out.append(f'<path d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}" stroke="{GREY}" stroke-opacity="0.25"/>')
        out.append(text(LEFT - 8, y(value) + 4, f"{value:g}", "end"))
    shown: list[float] = []
    for value in frames:
        if not shown or x(value) - x(shown[-1]) > 24:
            shown.append(value)
            out.append(text(x(value), HEIGHT - BOTTOM + 20, str(value), "middle"))
    out.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, "frames", "middle"))
    labels: list[float] = []
    for (size, what), line in sorted(lines.items(), key=lambda item: -max(s for _, s in item[1])):
        colour, line = COLOURS.get(size, GREY), sorted(line)
        path = "L".join(f"{x(f):.1f} {y(s):.1f}" for f, s in line)
        dash = ' stroke-dasharray="5 4"' if what == "dense" else ""
        out.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        out += [f'<circle cx="{x(f):.1f}" cy="{y(s):.1f}" r="3" fill="{colour}"/>' for f, s in line]
        at_the_end = line[-1][0] == max(frames)
        place = y(line[-1][1]) + (4 if at_the_end else -6)
        while any(abs(place - other) < 13 for other in labels):
            place += 1
        labels.append(place)
        name = f"{size} {'dense' if what == 'dense' else 'BSA'}"
        out.append(text(WIDTH - RIGHT + 8 if at_the_end else x(line[-1][0]) + 4, place, name, "start", colour))
    return "\n".join([*out, "</svg>", ""])
