"""Predicts the seconds of jobs from earlier jobs, and plays a queue and its engines through to the end."""

from __future__ import annotations

import heapq
import itertools
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from itertools import takewhile

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


def may_begin(first: Job, running: Collection[Job]) -> bool:
    """Whether the first job that waits may run beside these. A barrier runs alone."""
    return not running or not (first.barrier or any(job.barrier for job in running))


def place_of(job: Job, waiting: Iterable[Job]) -> int:
    """The position of a job that gives way: behind as many jobs of other owners as there are other owners.

    So every waiting owner gets one turn for each turn of the job, and an owner with twenty jobs cannot make it wait for
    all of them. Each job without an owner counts as one of its own owner.
    """
    passing = list(takewhile(lambda other: not other.barrier, waiting))
    strangers = [index for index, other in enumerate(passing) if not job.owner or other.owner != job.owner]
    people = {passing[index].owner or passing[index].id for index in strangers}
    return strangers[len(people) - 1] + 1 if people else 0


class Outlook:
    """When the jobs of a queue will run and end, as long as nobody else comes.

    It plays what will happen: an engine that is free takes the first job that waits, and one that gives way after a
    part of it comes up again. Made once, it answers any number of pages without going through the jobs again.

    waiting: in the order of the queue. running: those that engines are at now.
    engines: how many there are, at least one.
    whole: guesses at all that a job takes, None where that is not known.
    """

    def __init__(
        self,
        waiting: Iterable[Job],
        running: Collection[Job],
        engines: int,
        whole: Callable[[Job], float | None],
    ) -> None:
        self._engines = max(1, engines, len(running))
        self._order: list[Job] = list(running)
        self._running = len(running)
        # seconds from now; infinity for what is behind a job of which nothing is known
        self._begin: dict[Job, float] = {}
        self._end: dict[Job, float] = {}
        queue, left, rates = list(waiting), {}, {}
        for job in (*running, *queue):
            seconds = seconds_left(job, whole(job))
            left[job] = job.parts
            rates[job] = math.inf if seconds is None else seconds / max(left[job], 1e-9)
        under_way: list[tuple[float, int, Job]] = []  # the ends of the parts that are being made, the next first
        numbers = itertools.count()  # equal ends come in the order in which they began

        def begin(job: Job, now: float) -> None:
            self._begin.setdefault(job, now)
            after = max(0, math.ceil(left[job]) - 1)
            share, left[job] = left[job] - after, after
            heapq.heappush(under_way, (now + share * rates[job] if share else now, next(numbers), job))

        def fill(now: float) -> None:
            while queue and len(under_way) < self._engines and may_begin(queue[0], [job for *_, job in under_way]):
                job = queue.pop(0)
                if job not in self._begin:
                    self._order.append(job)
                begin(job, now)

        for job in running:
            begin(job, 0.0)
        fill(0.0)
        while under_way:
            now, _, job = heapq.heappop(under_way)
            self._end[job] = now
            if left[job]:
                place = place_of(job, queue)
                if place:
                    queue.insert(place, job)
                else:
                    begin(job, now)
            fill(now)
        self._places = {job: place if place >= self._running else 0 for place, job in enumerate(self._order)}

    def __contains__(self, job: Job) -> bool:
        return job in self._places

    def before(self, job: Job) -> list[Job]:
        """The jobs that begin before this one does, those that run included."""
        return self._order[: self._places.get(job, 0)]

    def place(self, job: Job) -> int:
        """Its number among those that wait, from 1 on."""
        return max(1, self._places.get(job, 0) - self._running + 1)

    def must_end(self, job: Job) -> int:
        """How many jobs have to end before an engine is free for this one."""
        return max(0, self._places.get(job, 0) - self._engines + 1)

    def wait_seconds(self, job: Job) -> float | None:
        """Seconds until it runs; 0 for one that does or does not wait, None where that cannot be told."""
        return _known(self._begin.get(job, 0.0))

    def seconds_left(self, job: Job) -> float | None:
        """Seconds until it is done; None where that cannot be told. It must be one of the queue's."""
        return _known(self._end[job])


def _known(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) else None


def duration_text(seconds: float) -> str:
    """A duration with the precision of an estimate: "8 s", "40 s", "3 min", "1 h 20 min"."""
    if seconds < 57.5:
        return SECONDS.format(seconds=max(1, round(seconds) if seconds < 9.5 else 5 * round(seconds / 5)))
    minutes = max(1, round(seconds / 60))
    if minutes < 60:
        return MINUTES.format(minutes=minutes)
    return HOURS.format(hours=minutes // 60, minutes=minutes % 60)
