"""Knows which clients are connected: each hears of its calls on a stream, and a killed one has none."""

from __future__ import annotations

import re
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs

MOST_SESSIONS = 10_000
# of the Python client and the page, and of a REST call, whose session has the name of the call
_STREAM = re.compile(r"/gradio_api/(?:queue/data|call/(?:v2/)?[^/]+/(?P<call>[^/]+))/?$")


class Presence:
    """When each session had a stream last. clock: seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._open: Counter[str] = Counter()
        self._closed: OrderedDict[str, float] = OrderedDict()

    def seen(self, session: str) -> float:
        """When the session had a stream last: now, if it has one; minus infinity for one that never had."""
        return self.clock() if session in self._open else self._closed.get(session, float("-inf"))

    @contextmanager
    def connected(self, session: str) -> Iterator[None]:
        """While a stream of the session is open."""
        self._open[session] += 1
        try:
            yield
        finally:
            self._open[session] -= 1
            if not self._open[session]:
                del self._open[session]
            self._closed[session] = self.clock()
            self._closed.move_to_end(session)
            while len(self._closed) > MOST_SESSIONS:
                self._closed.popitem(last=False)


def session_of_stream(path: str, query: bytes) -> str:
    """The session that a request for a stream is from; "" for any other request."""
    found = _STREAM.search(path)
    if found is None:
        return ""
    return found["call"] or parse_qs(query.decode("latin-1")).get("session_hash", [""])[0]
