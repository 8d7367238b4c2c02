"""The settings that a sweep can vary, and their values as people write them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bsa import Grid
from bsa.config import SCHEDULE
from bsa.selectors import SCORES
from pipeline.request.values import chunk, number, read_text, whole_number

Chunks = tuple[Grid, Grid]  # of queries and of keys

LABELS = {
    "sparsity": "sparsity",
    "cdf_threshold": "cdf threshold",
    "chunk": "chunk",
    "selection": "selection",
    "dense_steps": "dense steps",
    "dense_layers": "dense layers",
    "select_every": "select every",
    "seed": "seed",
    "steps": "steps",
}


@dataclass(frozen=True)
class Axis:
    """One swept setting.

    Attributes:
        name: a key of `LABELS`.
        values: in the order of the rows or columns: numbers, for "chunk" pairs of query and key chunk, for "selection"
            names of `bsa.selectors.SCORES`.

    Raises:
        ValueError: the name is unknown, or there are no values, or two are the same.
    """

    name: str
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        _known(self.name)
        if not self.values:
            raise ValueError(f"no values to sweep the {self.label} over; give some, such as {EXAMPLES[self.name]}")
        seen = set()
        for index, value in enumerate(self.values):
            if value in seen:
                raise ValueError(f"{self.label} {self.text(index)} is given twice; leave one out")
            seen.add(value)

    @classmethod
    def of(cls, name: str, values: str | Sequence[Any]) -> Axis:
        """Read a comma list ("0.5, 0.75") or a sequence of values, each a number or text.

        A chunk is written 4x4x4, or 4x4x4/4x4x8 when keys have another than queries; in a sequence, three numbers
        or a pair of such triples do as well.
        """
        _known(name)
        if isinstance(values, str):
            values = [text for text in values.replace(";", ",").split(",") if text.strip()]
        elif not isinstance(values, Sequence):
            raise ValueError(f"the values of {LABELS[name]} are not a list; give one such as {EXAMPLES[name]}")
        return cls(name, tuple(_READ[name](name, value) for value in values))

    @property
    def label(self) -> str:
        return LABELS[self.name]

    def text(self, index: int) -> str:
        """A value as it is written."""
        return value_text(self.values[index])


def _known(name: Any) -> None:
    if not isinstance(name, str) or name not in LABELS:
        raise ValueError(f"{name!r} cannot be swept; choose among {', '.join(LABELS)}")


def parse_axis(text: str) -> Axis:
    """Read "sparsity=0.5,0.75"; ValueError when it is not NAME=VALUES."""
    name, equals, values = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} is not NAME=VALUES; write for example sparsity={EXAMPLES['sparsity']}")
    return Axis.of(name.strip().replace("-", "_"), values)


def value_text(value: Any) -> str:
    if not isinstance(value, tuple):
        return f"{value:g}" if isinstance(value, float) else str(value)
    query, key = value
    return str(query) if query == key else f"{query}/{key}"


EXAMPLES = {
    "sparsity": "0.5, 0.75, 0.9375",
    "cdf_threshold": "0.7, 0.9",
    "chunk": "2x4x4, 4x4x4",
    "selection": "mean, cells",
    "dense_steps": "0, 1",
    "dense_layers": "0, 2",
    "select_every": "1, 2",
    "seed": "1, 2, 3",
    "steps": "8, 16",
}


def _number(name: str, value: Any) -> int | float:
    given = read_text(value) if isinstance(value, str) else value
    if not isinstance(given, int | float):
        raise ValueError(_unreadable(name, value.strip() if isinstance(value, str) else value))
    read = number(LABELS[name], given)
    if not math.isfinite(read):
        raise ValueError(_unreadable(name, read))
    return read


def _whole(name: str, value: Any) -> int:
    return whole_number(LABELS[name], _number(name, value))


def _chunks(name: str, value: Any) -> Chunks:
    if isinstance(value, str):
        sides = [chunk(part) for part in value.strip().lower().replace("×", "x").split("/")]
    elif isinstance(value, Sequence) and len(value) == 3:
        sides = [chunk(value)]
    elif isinstance(value, Sequence):
        sides = [chunk(part) for part in value]
    else:
        sides = []
    whole = [side for side in sides if side is not None]
    if not 1 <= len(whole) == len(sides) <= 2:
        shown = value.strip() if isinstance(value, str) else value
        raise ValueError(f"chunk {shown!r} is not three whole numbers; write 4x4x4, or 4x4x4/4x4x8 for query and key")
    return whole[0], whole[-1]


def _scores(name: str, value: Any) -> str:
    scores = value.strip() if isinstance(value, str) else value
    if not isinstance(scores, str) or scores not in SCORES:
        raise ValueError(f"selection {scores!r} is unknown; choose among {', '.join(SCORES)}")
    return scores


def _unreadable(name: str, value: Any) -> str:
    return f"{LABELS[name]} {value!r} is not a number; write a list such as {EXAMPLES[name]}"


_READ: dict[str, Callable[[str, Any], Any]] = {
    "sparsity": _number,
    "cdf_threshold": _number,
    "chunk": _chunks,
    "selection": _scores,
    **dict.fromkeys((*SCHEDULE, "seed", "steps"), _whole),
}
