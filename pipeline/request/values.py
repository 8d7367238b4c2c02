"""Reads single values as people, browsers and JSON write them: numbers, chunk shapes, adapters."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

from bsa import Grid

LARGEST = 2.0**63  # of any setting, below what a float cannot hold, and what JSON's readers take
MAX_DIGITS = 1000  # far fewer than those that Python refuses to read
STRONGEST = 10.0  # of adapters, either way; far beyond it values become infinite
_STRENGTH = re.compile(r"(?P<name>.+):(?P<strength>[-+]?(?:\d+\.?\d*|\.\d+))", re.DOTALL)


def number(label: str, value: Any) -> int | float:
    """The number, as it is. ValueError, which says `label`, for anything else and for what no setting can be."""
    if value is None:
        raise ValueError(f"{label} is empty; enter a number")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{label} {value!r} is not a number; enter one such as 4 or 0.5")
    if LARGEST < abs(value) < math.inf:  # JSON sets no limit, and math's functions raise beyond a float's range
        raise ValueError(f"{label} is far too large; enter a smaller number")
    return value


def real_number(label: str, value: Any) -> float:
    """A float also of a whole number, so that a video's settings read the same wherever they were entered."""
    return float(number(label, value))


def whole_number(label: str, value: Any) -> int:
    """Browsers and JSON deliver whole numbers as 4.0 too; anything with a fraction is refused, never rounded."""
    given = number(label, value)
    if not math.isfinite(given) or given != int(given):
        near = int(given) if math.isfinite(given) else 1
        raise ValueError(f"{label} {value} is not a whole number; try one such as {near}")
    return int(given)


def read_text(text: str) -> int | float | None:
    """The number that a text says: an exact int where it has digits alone; None if it says none."""
    text = text.strip()
    if text.isdecimal():
        return int(text[:MAX_DIGITS])  # of more digits any part is far too large
    try:
        return float(text)
    except ValueError:
        return None


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


@dataclass(frozen=True)
class Adapter:
    """An adapter by its name, and the factor of what it adds to the model: 1 as it was trained, 0 for nothing."""

    name: str
    strength: float = 1.0

    def __str__(self) -> str:
        return self.name if self.strength == 1 else f"{self.name}:{self.strength:g}"


def read_adapters(text: str | None, names: Container[str] = ()) -> tuple[Adapter, ...]:
    """Adapters as they stand in a request: names joined by "+", each with ":" and a strength, or 1. None for none.

    names: of adapters that exist; text that is one of them is taken whole, whatever characters it has. So is text that
        has nothing before, between or behind a "+".

    Raises:
        ValueError: a name comes twice, or a strength is out of bounds.
    """
    if text is None:
        return ()
    parts = [part.strip() for part in text.split("+")]
    if text in names or not all(parts):
        return (Adapter(text),)
    adapters = tuple(map(_read_adapter, parts))
    found = [adapter.name for adapter in adapters]
    if twice := sorted({name for name in found if found.count(name) > 1}):
        raise ValueError(f"lora {text!r} has the adapter {twice[0]!r} twice; name it once, with one strength")
    return adapters


def _read_adapter(part: str) -> Adapter:
    found = _STRENGTH.fullmatch(part)
    adapter = Adapter(part) if found is None else Adapter(found["name"], float(found["strength"]))
    if abs(adapter.strength) > STRONGEST:
        raise ValueError(
            f"the strength {adapter.strength:g} of the adapter {adapter.name!r} is outside -{STRONGEST:g} to "
            f"{STRONGEST:g}; 1 is what it was trained for"
        )
    return adapter
