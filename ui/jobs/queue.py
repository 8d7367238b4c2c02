"""The waiting jobs, the running job, and the jobs that ended lately."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import takewhile

from ui.jobs.eta import Durations, duration_text, seconds_left
from ui.jobs.job import Job

QUEUE_FULL = "{count} jobs are waiting and the limit is {limit}; try again when some of them are done"
YOUR_QUEUE_FULL = "{count} jobs of yours are waiting and the limit is {limit}; stop one or let one finish first"
WAIT_FOR_ONE = "Waiting for 1 other job…"
WAIT_FOR_MANY = "Waiting for {ahead} other jobs…"
WAIT_FOR_ONE_ABOUT = "Waiting for 1 other job, about {time}…"
WAIT_FOR_MANY_ABOUT = "Waiting for {ahead} other jobs, about {time}…"
STARTING = "Starting…"


class JobQueue:
    """A first-in, first-out queue for any number of threads. Between its parts a job lets others pass (`give_way`).

    most, most_of_one: most jobs that may wait, in total and per owner. Jobs without an owner count only in total.
    kept: number of ended jobs that are remembered.
    changed: condition that is notified when a job arrives, or when anything else happens that a thread may wait for.
    predict: returns a better guess of a job's seconds than earlier jobs give, or None.
    """

    def __init__(self, most: int, most_of_one: int, kept: int) -> None:
        self.changed = threading.Condition()
        self.running: Job | None = None
        self.predict: Callable[[Job], float | None] = lambda job: None
        self._limits = most, most_of_one
        self._kept = kept
        self._waiting: deque[Job] = deque()
        self._jobs: dict[str, Job] = {}
        self._ended: deque[str] = deque()
        self._durations = Durations()
        self._left: dict[Job, float] = {}  # when each job gave way

    def __len__(self) -> int:
        return len(self._waiting)

    def check_room(self, owner: str) -> None:
        """Raise ValueError if too many jobs are waiting already."""
        with self.changed:
            owners = [job.owner for job in self._waiting if not job.errand]
        most, most_of_one = self._limits
        if (count := len(owners)) >= most:
            raise ValueError(QUEUE_FULL.format(count=count, limit=most))
        count = owners.count(owner)
        if owner and count >= most_of_one:
            raise ValueError(YOUR_QUEUE_FULL.format(count=count, limit=most_of_one))

    def put(self, job: Job) -> None:
        with self.changed:
            self._jobs[job.id] = job
            self._waiting.append(job)
            self.changed.notify_all()

    def take(self) -> Job:
        """Take the next job, which counts as running from now on. There must be one."""
        with self.changed:
            self.running = job = self._waiting.popleft()
            if since := self._left.pop(job, 0.0):
                job.away += time.time() - since
            return job

    def give_way(self, job: Job) -> bool:
        """Between two parts of the running job, let as many jobs pass as there are other owners waiting.

        Returns False if nobody else waits; the job then continues.
        """
        with self.changed:
            place = _place(job, self._waiting)
            if place == 0 or job.stopping:
                return False
            job.state, self._left[job], self.running = "waiting", time.time(), None
            self._waiting.insert(place, job)
            job.version += 1
            return True

    def remove(self, job: Job) -> bool:
        """Remove a waiting job. Returns False if it is not waiting."""
        with self.changed:
            waits = job in self._waiting
            if waits:
                self._waiting.remove(job)
            return waits

    def clear(self, *, errands: bool) -> list[Job]:
        """Remove all waiting jobs and return them. errands: whether to remove errands as well."""
        with self.changed:
            out = [job for job in self._waiting if errands or not job.errand]
            self._waiting = deque(job for job in self._waiting if job not in out)
            return out

    def end(self, job: Job) -> None:
        """Record the end of a job. Later jobs are expected to take as long."""
        with self.changed:
            self._left.pop(job, None)
        self._durations.add(job)
        self.remember(job)

    def remember(self, job: Job) -> None:
        """Keep an ended job so that it can be found. The oldest ones are forgotten."""
        with self.changed:
            self._jobs[job.id] = job
            self._ended.append(job.id)
            while len(self._ended) > self._kept:
                self._jobs.pop(self._ended.popleft(), None)

    def forget(self, job_id: str) -> None:
        """Forget an ended job that was deleted."""
        with self.changed:
            if job_id in self._jobs and self._jobs[job_id].over:
                del self._jobs[job_id]

    def get(self, job_id: str) -> Job | None:
        return self._jobs.get(job_id)

    def live(self, owner: str) -> list[Job]:
        """The owner's waiting and running jobs, oldest first."""
        with self.changed:
            return [job for job in self._jobs.values() if job.owner == owner and not job.over and not job.errand]

    def before(self, job: Job) -> list[Job]:
        """Jobs that will run before this one, including the running job."""
        turns = self._turns()
        jobs = [other for other, _ in turns]
        return list(dict.fromkeys(jobs[: jobs.index(job)])) if job in jobs else []

    def waiting_text(self, job: Job) -> str:
        """A sentence on how many jobs run before this one, and how long they take if that is known."""
        ahead = len(self.before(job))
        if not ahead:
            return STARTING
        seconds = self.wait_seconds(job)
        if seconds is None:
            return WAIT_FOR_ONE if ahead == 1 else WAIT_FOR_MANY.format(ahead=ahead)
        text = WAIT_FOR_ONE_ABOUT if ahead == 1 else WAIT_FOR_MANY_ABOUT
        return text.format(ahead=ahead, time=duration_text(seconds))

    def wait_seconds(self, job: Job) -> float | None:
        """Seconds until a waiting job runs. 0 if it runs; None if a job before it cannot be predicted."""
        turns = self._turns()
        jobs = [other for other, _ in turns]
        return self._seconds(turns[: jobs.index(job)]) if job in jobs else 0.0

    def seconds_left(self, job: Job) -> float | None:
        """Seconds until the job is done, including its wait, or None if unknown."""
        turns = self._turns()
        last = max((index for index, (other, _) in enumerate(turns) if other is job), default=None)
        return seconds_left(job, self._guess(job)) if last is None else self._seconds(turns[: last + 1])

    def _turns(self) -> list[tuple[Job, float]]:
        """The coming turns if no further job arrives: pairs of a job and the share of a part left to do.

        A job that gives way appears once for each of its parts.
        """
        with self.changed:
            waiting = list(self._waiting)
            if self.running is not None:
                waiting.insert(0, self.running)
        left = {job: job.parts for job in waiting}
        turns = []
        while waiting:
            job = waiting.pop(0)
            after = max(0, math.ceil(left[job]) - 1)
            turns.append((job, left[job] - after))
            left[job] = after
            if after:
                waiting.insert(_place(job, waiting), job)
        return turns

    def _seconds(self, turns: list[tuple[Job, float]]) -> float | None:
        """Seconds of these turns, or None if the seconds of one of them are unknown."""
        rates = {}
        for job, _ in turns:
            if job not in rates:
                seconds = seconds_left(job, self._guess(job))
                if seconds is None:
                    return None
                rates[job] = seconds / max(job.parts, 1e-9)
        return sum(part * rates[job] for job, part in turns)

    def _guess(self, job: Job) -> float | None:
        guess = self.predict(job)
        return self._durations.guess(job) if guess is None else guess


def _place(job: Job, waiting: Iterable[Job]) -> int:
    """The position of a job that gives way: behind as many jobs of other owners as there are other owners.

    So every waiting owner gets one turn for each turn of the job, and an owner with twenty jobs cannot make it wait for
    all of them. Each job without an owner counts as one of its own owner.
    """
    passing = list(takewhile(lambda other: not other.barrier, waiting))
    strangers = [index for index, other in enumerate(passing) if not job.owner or other.owner != job.owner]
    people = {passing[index].owner or passing[index].id for index in strangers}
    return strangers[len(people) - 1] + 1 if people else 0
