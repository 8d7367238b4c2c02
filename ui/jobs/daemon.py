"""Runs functions in a thread that the end of the program does not wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class DaemonThread:
    """Runs functions one after the other.

    At its end the interpreter waits for the threads of a `ThreadPoolExecutor`, so SIGTERM
    would wait for a download or a clip.
    """

    def __init__(self, name: str) -> None:
        self._tasks: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        threading.Thread(target=self._serve, name=name, daemon=True).start()

    def submit(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Run the function after those that were submitted before. Cancelling the future works until it begins."""
        future: Future[R] = Future()
        self._tasks.put((future, partial(function, *args, **kwargs)))
        return future

    def close(self) -> None:
        """End the thread after what was submitted."""
        self._tasks.put(None)

    def _serve(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, call = task
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
            del task, future, call  # results are large, and the next task may be hours away
