"""Predicts the seconds of jobs from those of earlier jobs."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable

from ui.jobs.job import Job

REMEMBERED = 50
LIKE = 4.0  # a job predicts another only within this factor of work, because attention grows faster than the video

SECONDS = "{seconds} s"
MINUTES = "{minutes} min"
HOURS = "{hours} h {minutes} min"


class Durations:
    """Seconds of finished jobs, by class and work."""

    def __init__(self) -> None:
        self._seen: deque[tuple[type[Job], float, float]] = deque(maxlen=REMEMBERED)

    def add(self, job: Job) -> None:
        if job.state == "done" and job.work > 0:
            self._seen.append((type(job), job.work, job.ended - job.started - job.away))

    def guess(self, job: Job) -> float | None:
        """Seconds of the whole job, judged by finished jobs of its class and similar size; None if there are none."""
        rates = [
            seconds / work
            for kind, work, seconds in tuple(self._seen)
            if kind is type(job) and work / LIKE <= job.work <= work * LIKE
        ]
        return statistics.mean(rates) * job.work if rates else None


def seconds_left(job: Job, whole: float | None) -> float | None:
    """Seconds until the job is done, if it continued now. whole: a guess at its total seconds, or None."""
    if job.started == 0:
        return whole
    seen = job.remaining()
    if seen is not None:
        return seen
    return None if whole is None else max(0.0, whole - (time.time() - job.started - job.away))


class Outlook:
    """When the jobs of a queue will run and end, as long as nobody else comes.

    It is made once for each change of the queue and then answers any number of pages without going through the jobs
    again. Only the running job moves on meanwhile, so what is left of that one is looked up when asked.

    turns: jobs in the order in which they get their turns, and how much of a part each turn is.
    running: the one that has the first turn now; None while none runs.
    whole: guesses at all that a job takes, None where that is not known.
    """

    def __init__(
        self, turns: list[tuple[Job, float]], running: Job | None, whole: Callable[[Job], float | None]
    ) -> None:
        self._order: list[Job] = []
        self._places: dict[Job, int] = {}
        # seconds of the turns of others than the running job, None where not known, and the number of its own turns
        self._begin: dict[Job, tuple[float | None, int]] = {}
        self._end: dict[Job, tuple[float | None, int]] = {}
        self._running = running
        self._guess = None if running is None else whole(running)
        rates: dict[Job, float | None] = {}
        seconds: float | None = 0.0
        own = 0
        for job, part in turns:
            if job not in self._places:
                self._places[job] = len(self._order)
                self._order.append(job)
                self._begin[job] = seconds, own
                left = None if job is running else seconds_left(job, whole(job))
                rates[job] = None if left is None else left / max(job.parts, 1e-9)
            rate = rates[job]
            if job is running:
                own += 1
            elif seconds is not None:
                seconds = None if rate is None else seconds + part * rate
            self._end[job] = seconds, own
        self._own = own

    def __contains__(self, job: Job) -> bool:
        return job in self._places

    def count_before(self, job: Job) -> int:
        """How many jobs run before this one does."""
        return self._places.get(job, 0)

    def before(self, job: Job) -> list[Job]:
        return self._order[: self.count_before(job)]

    def wait_seconds(self, job: Job) -> float | None:
        """Seconds until it runs; 0 for one that does or does not wait, None where that cannot be told."""
        return self._seconds(*self._begin.get(job, (0.0, 0)))

    def seconds_left(self, job: Job) -> float | None:
        """Seconds until it is done; None where that cannot be told. It must be one of the queue's."""
        return self._seconds(*self._end[job])

    def _seconds(self, others: float | None, own: int) -> float | None:
        if others is None or self._running is None or not own:
            return others
        left, parts = seconds_left(self._running, self._guess), self._running.parts
        if left is None:
            return None
        under_way = max(0.0, parts - (self._own - 1))
        return others + (under_way + own - 1) * left / max(parts, 1e-9)


def duration_text(seconds: float) -> str:
    """A duration with the precision of an estimate: "8 s", "40 s", "3 min", "1 h 20 min"."""
    if seconds < 57.5:
        return SECONDS.format(seconds=max(1, round(seconds) if seconds < 9.5 else 5 * round(seconds / 5)))
    minutes = max(1, round(seconds / 60))
    if minutes < 60:
        return MINUTES.format(minutes=minutes)
    return HOURS.format(hours=minutes // 60, minutes=minutes % 60)
