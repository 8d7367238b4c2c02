"""Limits connections, so that file handles are left for everything else, and keeps the log short about it.

Without a handle nothing works: no connection is taken, no video written, no engine started. Gradio starts uvicorn with
no bound, and a connection that never sends a request stays as long as its client likes.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import uvicorn

if sys.platform != "win32":
    import resource

log = logging.getLogger("ui.connections")

MOST_HANDLES = 65_536  # asked of the system, which often gives 1,024 to a program that does not ask
MOST = 1000  # connections; an open page has two or three
IDLE_SECONDS = 30.0  # without a request
SPARING_SECONDS = 10.0
MOST_KINDS = 1000  # of lines that are remembered

FULL = "there are %d connections, as many as are taken; others are closed"
MORE = "%s (and %d more like it)"


def raise_handle_limit() -> int:
    """Let this process, and those that it starts, have as many file handles as the system grants; returns how many."""
    if sys.platform == "win32":  # which has no such limit
        return MOST_HANDLES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_HANDLES if hard == resource.RLIM_INFINITY else min(hard, MOST_HANDLES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft if soft > 0 else MOST_HANDLES
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def bound_connections(server: uvicorn.Server) -> None:
    """Have a running server close connections beyond `MOST`, or beyond half of the file handles, and those on which no
    request comes."""
    protocol = server.config.http_protocol_class
    most = min(MOST, raise_handle_limit() // 2)

    class Bounded(protocol):  # type: ignore[misc, valid-type]
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._seen = None
            if len(self.connections) > most:
                log.warning(FULL, most)
                transport.abort()
            else:
                self._look_again()

        def _look_again(self) -> None:
            self.loop.call_later(IDLE_SECONDS, self._look)

        def _look(self) -> None:
            if self.transport.is_closing():
                return
            if self.cycle is self._seen and (self.cycle is None or self.cycle.response_complete):
                self.transport.close()
                return
            self._seen = self.cycle
            self._look_again()

    server.config.http_protocol_class = Bounded


def spare_log() -> None:
    """Keep what anybody can make the server say, any number of times, from filling the log."""
    sparing = Sparing()
    for logger in (log, logging.getLogger("asyncio"), logging.getLogger("uvicorn.error")):
        logger.addFilter(sparing)


class Sparing(logging.Filter):
    """Lets the same line through once in ten seconds, and then says how many it kept. Some lines come with every
    request, and the one about file handles comes thousands of times a second."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._kinds: dict[Any, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        kind, now = (record.name, str(record.msg)), self._clock()
        since, kept = self._kinds.get(kind, (-SPARING_SECONDS, 0))
        if now - since < SPARING_SECONDS:
            self._kinds[kind] = since, kept + 1
            return False
        if len(self._kinds) >= MOST_KINDS:
            self._kinds.clear()
        self._kinds[kind] = now, 0
        if kept:
            record.msg, record.args = MORE, (record.getMessage(), kept)
        return True
