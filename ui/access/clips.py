"""Reads clips one at a time, outside the event loop that answers all visitors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

from ui.jobs.daemon import DaemonThread

MOST_WAITING = 8
BUSY = "the server is reading the clips of others; try again in a minute"

P = ParamSpec("P")
R = TypeVar("R")


class ClipReader:
    """Runs functions that read a clip one after the other in a separate thread. Decoding takes seconds and memory."""

    def __init__(self) -> None:
        self._thread = DaemonThread("clips")
        self._waiting = 0

    async def read(self, clip: object, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Return the function's result. It runs in the caller's thread if there is no clip to read.

        Raises:
            ValueError: too many callers are waiting. Errors of the function are raised too.
        """
        if not clip:
            return function(*args, **kwargs)
        if self._waiting >= MOST_WAITING:
            raise ValueError(BUSY)
        self._waiting += 1
        loop, reading = asyncio.get_running_loop(), self._thread.submit(function, *args, **kwargs)

        def over(_: Future[R]) -> None:
            # called when the reading itself ends: it continues even if the visitor leaves
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._leave)

        reading.add_done_callback(over)
        return await asyncio.wrap_future(reading)

    def _leave(self) -> None:
        self._waiting -= 1
