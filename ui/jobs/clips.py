"""Clips are read one at a time, and never by the loop that answers everybody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

MOST_WAITING = 8
BUSY = "the server is reading the clips of others; try again in a minute"

P = ParamSpec("P")
R = TypeVar("R")


class ClipReader:
    """Runs what reads a clip in a thread of its own, in turn. Decoding takes seconds, processors and memory."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="clips")
        self._waiting = 0

    async def read(self, clip: object, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """The function's result, in this thread where there is no clip to read.

        Raises:
            ValueError: too many wait; and what the function raises.
        """
        if not clip:
            return function(*args, **kwargs)
        if self._waiting >= MOST_WAITING:
            raise ValueError(BUSY)
        self._waiting += 1
        loop, reading = asyncio.get_running_loop(), self._pool.submit(function, *args, **kwargs)

        def over(_: Future[R]) -> None:
            # of the reading itself: a visitor who leaves does not end one that has begun
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._leave)

        reading.add_done_callback(over)
        return await asyncio.wrap_future(reading)

    def _leave(self) -> None:
        self._waiting -= 1
