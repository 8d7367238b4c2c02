"""Ctrl-C while ``python -m pipeline`` still imports PyTorch, for seconds: one word and exit code 130, no traceback."""

from __future__ import annotations

import os
import signal
import sys


def _leave(number: int, frame: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(128 + number)


def begin() -> None:
    """To be called by the package, which Python imports before its `__main__`. Does nothing for other programs."""
    # Python puts "-m" there while it looks for the module, and the module's file afterwards
    by_name = sys.argv[:1] == ["-m"] and __package__ in sys.orig_argv
    if by_name and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def end() -> None:
    """Ctrl-C raises KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


begin()
