"""Shows how alike two videos are: a curve over their frames, PSNR values to compare with, and their content."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

from pipeline import Comparison
from ui.look.figures import decibels

TITLE = "PSNR of each frame against dense, before compression"
WORST = "Worst frame: {number} of {count}, {psnr}"
ROUNDING = "Rounding alone (dense attention by another kernel): {mean:.1f} dB"
OTHER_SEED = "Another seed of the same prompt: {mean:.1f} dB, mostly {low:.1f} to {high:.1f}"
SAME = "Both show a {colour} {shape}, motion: {motion}."
ELSEWHERE = "The PSNR is no higher than between two seeds, so it is the same content at another place or moment."
DIFFERENT = "They show different things: dense a {dense}, sparse a {sparse}."
_WIDTH, _HEIGHT, _EDGE = 600.0, 110.0, 6.0


def likeness_html(comparison: Comparison) -> str:
    """HTML of the curve and its yardsticks, "" for a comparison without the figures of its frames."""
    said = content_text(comparison)
    content = f'<p class="content">{escape(said)}</p>' if said else ""
    worst = comparison.worst_frame
    if worst is None:
        return content
    words = [("frame", WORST.format(number=worst + 1, count=len(comparison.frames), psnr=_psnr(comparison, worst)))]
    stick = comparison.dense.yardstick or {}
    levels = []
    for name, text in (("rounding", ROUNDING), ("other_seed", OTHER_SEED)):
        if name in stick:
            mean, low, high = stick[name]
            levels.append((name, mean))
            words.append((name, text.format(mean=mean, low=low, high=high)))
    keys = "".join(f'<li data-line="{name}">{escape(text)}</li>' for name, text in words)
    return (
        f'<figure class="likeness"><figcaption>{escape(TITLE)}</figcaption>{_curve(comparison, levels, worst)}'
        f"<ul>{keys}</ul>{content}</figure>"
    )


def content_text(comparison: Comparison) -> str:
    """Whether both videos show the same, in words; "" where the classifier is not sure, or there is none."""
    same, dense, sparse = comparison.same_content, comparison.dense.shows, comparison.sparse.shows
    if same is None or not dense or not sparse:
        return ""
    if not same:
        each = {arm: _words(told) for arm, told in (("dense", dense), ("sparse", sparse))}
        return DIFFERENT.format(**each)
    text = SAME.format(**{name: answer for name, (answer, _) in dense.items()})
    stick = comparison.dense.yardstick
    low = stick is not None and comparison.psnr <= stick["other_seed"][2]
    return f"{text} {ELSEWHERE}" if low else text


def _words(told: Mapping[str, tuple[str, float]]) -> str:
    return f"{told['colour'][0]} {told['shape'][0]} (motion: {told['motion'][0]})"


def _psnr(comparison: Comparison, frame: int) -> str:
    return decibels(comparison.frames[frame])


def _curve(comparison: Comparison, levels: list[tuple[str, float]], worst: int) -> str:
    frames = comparison.frames
    known = [value for value in (*frames, *(level for _, level in levels)) if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=1.0)

    def y(value: float) -> float:
        share = 1.0 if math.isinf(value) else (value - low) / max(high - low, 1e-9)
        return round(_HEIGHT - _EDGE - share * (_HEIGHT - 2 * _EDGE), 1)

    def x(frame: int) -> float:
        return round(_WIDTH * frame / max(1, len(frames) - 1), 1)

    lines = "".join(f'<path class="{name}" d="M0 {y(level)}H{_WIDTH:g}"/>' for name, level in levels)
    points = " ".join(f"{x(number)},{y(value)}" for number, value in enumerate(frames))
    label = escape(f"{TITLE}: {decibels(min(frames))} to {decibels(max(frames))}")
    return (
        f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" preserveAspectRatio="none" role="img" aria-label="{label}">{lines}'
        f'<polyline class="frame" points="{points}"/>'
        f'<path class="worst" d="M{x(worst)} {_HEIGHT:g}V{y(frames[worst])}"/></svg>'
    )
