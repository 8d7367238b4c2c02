"""When an engine that does not answer is given up."""

from __future__ import annotations

BEAT_SECONDS = 1.0  # between two signs of life of the child
SILENT_SECONDS = 60  # without one, while a thread of the child that does nothing else would send them
SILENT_LOADING_SECONDS = 300  # libraries of gigabytes, from a slow disk, keep even that thread waiting
SILENT_STOPPING_SECONDS = 5  # when it was asked to stop as well
STOPPING_SECONDS = 60  # for a step to end after which the child looks whether it is to stop

HUNG = (
    "the engine gave no sign of life for {seconds} seconds and was ended; it starts again by itself, so try again"
)
NOT_STOPPED = "the engine did not stop within {seconds} seconds and was ended; it starts again by itself"


class Patience:
    """Counts beats instead of reading a clock, so that the time in which this process itself was stopped, or the whole
    machine asleep, is nothing that the child is blamed for."""

    def __init__(self) -> None:
        self._begun = False
        self._silent = self._unanswered = 0

    def beat(self, *, heard: bool, loading: bool, stopping: bool) -> str:
        """Call it every BEAT_SECONDS. Why the child is to be ended, or "" while it is not.

        heard: whether anything came from it since the last call. Before the first time, it has not begun.
        """
        self._begun = self._begun or heard
        self._silent = 0 if heard or not self._begun else self._silent + 1
        self._unanswered = self._unanswered + 1 if stopping else 0
        silent, unanswered = self._silent * BEAT_SECONDS, self._unanswered * BEAT_SECONDS
        if silent >= (SILENT_LOADING_SECONDS if loading else SILENT_SECONDS):
            return HUNG.format(seconds=round(silent))
        if unanswered >= STOPPING_SECONDS or min(silent, unanswered) >= SILENT_STOPPING_SECONDS:
            return NOT_STOPPED.format(seconds=round(unanswered))
        return ""
