"""The jobs that wait, the one that runs, and those that ended lately."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from ui.eta import Durations, seconds_left
from ui.jobs import Job

QUEUE_FULL = "{count} jobs are waiting and the limit is {limit}; try again when some of them are done"
YOUR_QUEUE_FULL = "{count} jobs of yours are waiting and the limit is {limit}; stop one or let one finish first"


class JobQueue:
    """First in, first out, for any number of threads.

    most, most_of_one: jobs that may wait, in all and of one owner. Jobs without an owner count in all.
    kept: ended jobs that are remembered.
    changed: notified when a job arrives; whoever waits for one, or for something else, waits on it.
    predict: guesses a job's seconds better than the jobs before it do; None where it cannot.
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

    def __len__(self) -> int:
        return len(self._waiting)

    def check_room(self, owner: str) -> None:
        """Raises ValueError when too many wait already."""
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
        """The next job, which runs from now on. There must be one."""
        with self.changed:
            self.running = self._waiting.popleft()
            return self.running

    def remove(self, job: Job) -> bool:
        """Take a job out that waits; False when it does not."""
        with self.changed:
            waits = job in self._waiting
            if waits:
                self._waiting.remove(job)
            return waits

    def clear(self, *, errands: bool) -> list[Job]:
        """Take all waiting jobs out, errands only if asked for."""
        with self.changed:
            out = [job for job in self._waiting if errands or not job.errand]
            self._waiting = deque(job for job in self._waiting if job not in out)
            return out

    def end(self, job: Job) -> None:
        """A job has ended here; others are expected to take as long."""
        self._durations.add(job)
        self.remember(job)

    def remember(self, job: Job) -> None:
        """Let an ended job be found; the oldest such are forgotten."""
        with self.changed:
            self._jobs[job.id] = job
            self._ended.append(job.id)
            while len(self._ended) > self._kept:
                self._jobs.pop(self._ended.popleft(), None)

    def forget(self, job_id: str) -> None:
        """An ended job was deleted and is not to be found any more."""
        with self.changed:
            if job_id in self._jobs and self._jobs[job_id].over:
                del self._jobs[job_id]

    def get(self, job_id: str) -> Job | None:
        return self._jobs.get(job_id)

    def live(self, owner: str) -> list[Job]:
        """The owner's jobs that wait or run, oldest first."""
        with self.changed:
            return [job for job in self._jobs.values() if job.owner == owner and not job.over and not job.errand]

    def before(self, job: Job) -> list[Job]:
        """Jobs that run before this one does, the running one included."""
        with self.changed:
            waiting = list(self._waiting)
            running = [] if self.running is None else [self.running]
        return running + waiting[: waiting.index(job)] if job in waiting else []

    def wait_seconds(self, job: Job) -> float | None:
        """Seconds until a waiting job begins; 0 for one that has, None when nothing like those before it has run."""
        left = [seconds_left(other, self._guess(other)) for other in self.before(job)]
        return None if None in left else sum(left)

    def seconds_left(self, job: Job) -> float | None:
        """Seconds until the job is done, waiting included; None when nothing is known yet."""
        wait, own = self.wait_seconds(job), seconds_left(job, self._guess(job))
        return None if wait is None or own is None else wait + own

    def _guess(self, job: Job) -> float | None:
        guess = self.predict(job)
        return self._durations.guess(job) if guess is None else guess
