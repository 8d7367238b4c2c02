"""Messages for people: one line, short enough to read whatever was put in."""

from __future__ import annotations

import logging
import re
from typing import Any

LONGEST_VALUE = 80
LONGEST = 600
_CUT = " … "

# A quoted text, a list or an object, or a word, of which none is a path: that is needed in full.
_VALUES = re.compile(
    rf"(?<!\w)'[^'/]{{{LONGEST_VALUE},}}'|\[[^\]]{{{LONGEST_VALUE},}}\]+|\{{[^}}]{{{LONGEST_VALUE},}}\}}+"
    rf"|[^\s/]{{{LONGEST_VALUE + 1},}}"
)

# What makes a terminal act, or turns the order of what is shown: controls (C0, DEL, C1), line and paragraph separators,
# directions; and halves of characters, which nothing can print.
CONTROLS = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """Text as it may be put on a terminal: characters that would act there written as in a Python literal."""
    return CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


class VisibleFormatter(logging.Formatter):
    """Of log lines that quote strangers: their text neither acts on the terminal nor looks like a line of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return visible(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return "\n".join(map(visible, super().formatException(ei).split("\n")))


def one_line(message: object) -> str:
    """The text of an error (or any other) on one line, with long values and what is left of it cut in their middle, and
    nothing in it that a terminal would act on."""
    text = visible(" ".join(_cut(str(message), 10 * LONGEST).split()))
    return _cut(_VALUES.sub(lambda value: _cut(value[0], LONGEST_VALUE), text), LONGEST)


def _cut(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    begin = longest * 2 // 3
    return f"{text[:begin]}{_CUT}{text[-(longest - begin - len(_CUT)) :]}"
