"""The waiting jobs, the running jobs, and the jobs that ended lately."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable

from ui.jobs.eta import Durations, Outlook, duration_text, may_begin, place_of, seconds_left
from ui.jobs.job import Job

QUEUE_FULL = "{count} jobs are waiting and the limit is {limit}; try again when some of them are done"
YOUR_QUEUE_FULL = "{count} jobs of yours are waiting and the limit is {limit}; stop one or let one finish first"
ADDRESS_FULL = "{count} jobs from your network address are waiting and the limit is {limit}; let one finish first"
WAIT_FOR_ONE = "Waiting for 1 other job…"
WAIT_FOR_MANY = "Waiting for {ahead} other jobs…"
WAIT_FOR_ONE_ABOUT = "Waiting for 1 other job, about {time}…"
WAIT_FOR_MANY_ABOUT = "Waiting for {ahead} other jobs, about {time}…"
STARTING = "Starting…"

OUTLOOK_SECONDS = 0.5  # an outlook is used for this long while jobs run, and else until the queue changes


class JobQueue:
    """A first-in, first-out queue that any number of engines take jobs from. Between its parts a job lets others pass
    (`give_way`).

    most, most_of_one: jobs that may wait, in all and of one owner. Jobs without an owner count in all. From one address
        half of all may come, whatever owners it makes up.
    kept: ended jobs that are remembered.
    changed: notified when a job arrives or has ended; whoever waits for one, or for something else, waits on it.
    running: the jobs that engines are at, in the order in which they took them.
    engines: tells how many take jobs.
    predict: guesses a job's seconds better than the jobs before it do; None where it cannot. Asked once for each job,
        and again at `predict_anew`: many pages ask many times a second how long they will wait.
    """

    def __init__(self, most: int, most_of_one: int, kept: int) -> None:
        self.changed = threading.Condition()
        self.running: list[Job] = []
        self.engines: Callable[[], int] = lambda: 1
        self.predict: Callable[[Job], float | None] = lambda job: None
        self._limits = most, most_of_one, max(1, most // 2)
        self._kept = kept
        self._waiting: deque[Job] = deque()
        self._jobs: dict[str, Job] = {}
        self._ended: deque[str] = deque()
        self._durations = Durations()
        self._left: dict[Job, float] = {}  # when those that gave way did so
        self._guesses: dict[Job, float | None] = {}
        self._outlook: Outlook | None = None  # None after every change
        self._outlook_until = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def ready(self) -> bool:
        """Whether a job waits that may begin beside those that run. The caller has the lock."""
        return bool(self._waiting) and may_begin(self._waiting[0], self.running)

    @property
    def first_is_errand(self) -> bool:
        return bool(self._waiting) and self._waiting[0].errand

    def check_room(self, owner: str, address: str = "") -> None:
        """Raises ValueError when too many wait already."""
        with self.changed:
            waiting = [job for job in self._waiting if not job.errand]
        most, most_of_one, most_of_address = self._limits
        if (count := len(waiting)) >= most:
            raise ValueError(QUEUE_FULL.format(count=count, limit=most))
        count = sum(job.owner == owner for job in waiting)
        if owner and count >= most_of_one:
            raise ValueError(YOUR_QUEUE_FULL.format(count=count, limit=most_of_one))
        count = sum(job.address == address for job in waiting)
        if address and count >= most_of_address:
            raise ValueError(ADDRESS_FULL.format(count=count, limit=most_of_address))

    def put(self, job: Job) -> None:
        guess = self.predict(job)
        with self.changed:
            self._guesses[job] = guess
            self._jobs[job.id] = job
            self._waiting.append(job)
            self._outlook = None
            self.changed.notify_all()

    def take(self) -> Job:
        """Take the next job, which counts as running from now on. The queue must be `ready`."""
        with self.changed:
            job = self._waiting.popleft()
            self.running.append(job)
            self._outlook = None
            if since := self._left.pop(job, 0.0):
                job.away += time.time() - since
            return job

    def give_way(self, job: Job) -> bool:
        """Between two parts of a running job, let as many jobs pass as there are other owners waiting.

        Returns False if nobody else waits; the job then continues.
        """
        with self.changed:
            place = place_of(job, self._waiting)
            if place == 0 or job.stopping:
                return False
            job.state, self._left[job] = "waiting", time.time()
            self.running.remove(job)
            self._waiting.insert(place, job)
            self._outlook = None
            job.version += 1
            self.changed.notify_all()
            return True

    def put_back(self, job: Job) -> None:
        """Let a running job that lost its engine wait again, before all others."""
        with self.changed:
            self.running.remove(job)
            job.begin_again()
            self._waiting.appendleft(job)
            self._outlook = None
            self.changed.notify_all()

    def remove(self, job: Job) -> bool:
        """Remove a waiting job. Returns False if it is not waiting."""
        with self.changed:
            waits = job in self._waiting
            if waits:
                self._waiting.remove(job)
                self._outlook = None
            return waits

    def clear(self, *, errands: bool) -> list[Job]:
        """Remove all waiting jobs and return them. errands: whether to remove errands as well."""
        with self.changed:
            out = [job for job in self._waiting if errands or not job.errand]
            self._waiting = deque(job for job in self._waiting if job not in out)
            self._outlook = None
            return out

    def end(self, job: Job) -> None:
        """A job has ended here; others are expected to take as long."""
        self._durations.add(job)
        with self.changed:
            if job in self.running:
                self.running.remove(job)
            self._left.pop(job, None)
            self._guesses.pop(job, None)
            self._outlook = None
            self.changed.notify_all()
        self.remember(job)

    def predict_anew(self) -> None:
        """Ask `predict` again for every waiting job."""
        with self.changed:
            jobs = list(self._guesses)
        guesses = {job: self.predict(job) for job in jobs}
        with self.changed:
            self._guesses |= {job: guess for job, guess in guesses.items() if job in self._guesses}
            self._outlook = None

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
        """The owner's running and waiting jobs, in the order in which they run."""
        with self.changed:
            places = {job: place for place, job in enumerate(self._waiting)}
            jobs = [job for job in self._jobs.values() if job.owner == owner and not job.over and not job.errand]
        return sorted(jobs, key=lambda job: places.get(job, -1))

    def move(self, job: Job, places: int) -> bool:
        """Let a waiting job change places with one of the same owner: `places` of them further on, or back if negative.

        Jobs of others keep their turns. Returns False where there is no such job, or a barrier between the two.
        """
        with self.changed:
            waiting = list(self._waiting)
            own = [at for at, other in enumerate(waiting) if other.owner == job.owner and not other.errand]
            if job not in waiting or not 0 <= (to := own.index(waiting.index(job)) + places) < len(own):
                return False
            one, two = sorted((waiting.index(job), own[to]))
            if any(other.barrier for other in waiting[one:two]):
                return False
            waiting[one], waiting[two] = waiting[two], waiting[one]
            self._waiting = deque(waiting)
            self._outlook = None
            for moved in (waiting[one], waiting[two]):
                moved.version += 1
            return True

    def before(self, job: Job) -> list[Job]:
        """Jobs that begin before this one does, those that run included."""
        return self._ahead().before(job)

    def place(self, job: Job) -> int:
        """The number of a job among those that wait, from 1 on."""
        return self._ahead().place(job)

    def waiting_text(self, job: Job) -> str:
        """How many jobs have to end before this one begins, and the seconds until then if they can be told."""
        outlook = self._ahead()
        ahead = outlook.must_end(job)
        if not ahead:
            return STARTING
        seconds = outlook.wait_seconds(job)
        if seconds is None:
            return WAIT_FOR_ONE if ahead == 1 else WAIT_FOR_MANY.format(ahead=ahead)
        text = WAIT_FOR_ONE_ABOUT if ahead == 1 else WAIT_FOR_MANY_ABOUT
        return text.format(ahead=ahead, time=duration_text(seconds))

    def wait_seconds(self, job: Job) -> float | None:
        """Seconds until a waiting job runs; 0 for one that does, None when nothing like those before it has run."""
        return self._ahead().wait_seconds(job)

    def seconds_left(self, job: Job) -> float | None:
        """Seconds until the job is done, waiting included; None when nothing is known yet."""
        outlook = self._ahead()
        return outlook.seconds_left(job) if job in outlook else seconds_left(job, self._guess(job))

    def _ahead(self) -> Outlook:
        with self.changed:
            now = time.monotonic()
            if self._outlook is None or now > self._outlook_until:
                self._outlook = Outlook(self._waiting, self.running, self.engines(), self._guess)
                # what runs moves on; if nothing does, the outlook stays true
                self._outlook_until = now + OUTLOOK_SECONDS if self.running else math.inf
            return self._outlook

    def _guess(self, job: Job) -> float | None:
        guess = self._guesses.get(job)
        return self._durations.guess(job) if guess is None else guess
