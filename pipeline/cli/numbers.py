"""Numbers of options, read and refused as the form, the API and a video's settings do it."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable
from typing import TypeVar

from pipeline.request.values import read_text, real_number, whole_number

T = TypeVar("T", int, float)


def whole_option(text: str) -> int:
    """A whole number, also as 4.0. Raises ArgumentTypeError, to which argparse adds the option."""
    return _read(whole_number, text)


def real_option(text: str) -> float:
    """Any number. Raises ArgumentTypeError as `whole_option` does."""
    return _read(real_number, text)


def _read(check: Callable[[str, object], T], text: str) -> T:
    number = read_text(text)
    try:
        return check("the value", text if number is None else number)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None
