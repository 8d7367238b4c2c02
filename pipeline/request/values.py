"""Reads single values as people, browsers and JSON write them: whole numbers, real numbers, chunk shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from bsa import Grid

LARGEST = 2.0**63  # of any setting, below what a float cannot hold, and what JSON's readers take
MAX_DIGITS = 1000  # far fewer than those that Python refuses to read


def number(label: str, value: Any) -> int | float:
    """The number, as it is. ValueError, which says `label`, for anything else and for what no setting can be."""
    if value is None:
        raise ValueError(f"{label} is empty; enter a number")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{label} {value!r} is not a number; enter one such as 4 or 0.5")
    if LARGEST < abs(value) < math.inf:  # JSON sets no limit, and math's functions raise beyond a float's range
        raise ValueError(f"{label} is far too large; enter a smaller number")
    return value


def real(label: str, value: Any) -> float:
    """A float also of a whole number, so that a video's settings read the same wherever they were entered."""
    return float(number(label, value))


def whole(label: str, value: Any) -> int:
    """Browsers and JSON deliver whole numbers as 4.0 too; anything with a fraction is refused, never rounded."""
    given = number(label, value)
    if not math.isfinite(given) or given != int(given):
        near = int(given) if math.isfinite(given) else 1
        raise ValueError(f"{label} {value} is not a whole number; try one such as {near}")
    return int(given)


def chunk(value: Any) -> Grid | None:
    """Three positive whole numbers: 4x4x4, "4,4,4", "4 4 4" or a sequence; None for anything else."""
    text = isinstance(value, str)
    parts: Any = value.lower().replace("×", "x").replace(",", " ").replace("x", " ").split() if text else value
    if not isinstance(parts, Sequence) or len(parts) != 3:
        return None
    try:
        sides = [int(part) for part in parts if not text or (part.isdecimal() and len(part) < 10)]
    except (TypeError, ValueError, OverflowError):
        return None
    if len(sides) != 3 or min(sides) < 1 or not (text or sides == list(parts)):
        return None
    return Grid(*sides)
