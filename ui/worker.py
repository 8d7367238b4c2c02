"""One worker thread that owns the pipeline and runs jobs one after another.

Handlers never run the model themselves. They submit a `Job` and follow it (a progress call from a foreign thread
would reach nobody).
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import Cancelled, StepUpdate
from ui.jobs import Generator, Job

log = logging.getLogger("ui")


class Worker:
    """Loads the pipeline in the background and then runs submitted jobs in order, one at a time.

    load: returns a `Generator`; called once, in the worker's thread. A ValueError or OSError from it
        becomes the status sentence, and every job fails with that sentence.
    output_dir: each job writes into its own new folder below it.
    """

    def __init__(self, load: Callable[[Callable[[str], None]], Generator], output_dir: Path, name: str) -> None:
        self.output_dir = output_dir
        self.name = name
        self.state = "loading"
        self.message = f"Loading {name}"
        self.listeners: list[Callable[[Job], None]] = []  # each is called with every job that has ended
        self.on_submit: list[Callable[[Job], None]] = []  # each is called with every new job, before it can run
        self.admit: list[Callable[[Job], None]] = []  # each may refuse a new job with a ValueError
        self.expect: Callable[[Job], float | None] = lambda job: None  # seconds that a job will take, where known
        self.archive: Callable[[str], Job | None] = lambda job_id: None  # finds what this worker does not remember
        self._load = load
        self._pipeline: Any = None
        self._queue: deque[Job] = deque()
        self._running: Job | None = None
        self._jobs: dict[str, Job] = {}
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._serve, name="video-worker", daemon=True)

    def start(self) -> Worker:
        self._thread.start()
        return self

    def submit(self, job: Job) -> Job:
        if self.state == "failed":
            raise ValueError(self.message)
        for check in self.admit:
            check(job)
        job.submitted = time.time()
        job.folder = self.output_dir / f"{time.strftime('%Y%m%d-%H%M%S')}-{job.id}"
        self._tell(self.on_submit, job)
        with self._wake:
            self._jobs[job.id] = job
            self._queue.append(job)
            self._wake.notify()
        return job

    def find(self, job_id: str, owner: str) -> Job | None:
        """A job by its id, for its owner only."""
        job = self._jobs.get(job_id) or self.archive(job_id)
        return job if job is not None and job.owner == owner else None

    def live(self, owner: str) -> list[Job]:
        """The owner's jobs that wait or run, oldest first."""
        with self._wake:
            return [job for job in self._jobs.values() if job.owner == owner and not job.over]

    def stop(self, job: Job) -> None:
        """End a job: at once while it waits, at its next step when it runs."""
        job.stop()
        with self._wake:
            waiting = job in self._queue
            if waiting:
                self._queue.remove(job)
        if waiting:
            self._end(job, "stopped")

    def ahead(self, job: Job) -> int:
        """Jobs that run before this one does, the running one included."""
        with self._wake:
            waiting = list(self._queue)
            running = self._running is not None
        return waiting.index(job) + running if job in waiting else 0

    def wait_seconds(self, job: Job) -> float | None:
        """About how long a waiting job still waits; None where a job before it cannot be estimated."""
        with self._wake:
            before = list(self._queue)
            running = self._running
        before = before[: before.index(job)] if job in before else []
        seconds = [self.expect(other) for other in before]
        if running is not None:
            whole = self.expect(running)
            seconds.append(None if whole is None else max(0.0, whole - (time.time() - running.started)))
        return None if None in seconds else sum(seconds)

    @property
    def engine_pid(self) -> int:
        """The process that the model runs in, whose memory is the model's; this one's where there is no other."""
        return getattr(self._pipeline, "pid", None) or os.getpid()

    def torch_memory(self) -> dict[str, int] | None:
        """{"allocated", "reserved"}: bytes of PyTorch's CUDA allocator, the latest known; None on a CPU."""
        read = getattr(self._pipeline, "torch_memory", None)
        return read() if read is not None else None

    def calibrate(self) -> list[dict[str, Any]]:
        """Measure this machine where the model runs; empty for a pipeline that cannot."""
        measure = getattr(self._pipeline, "calibrate", None)
        return measure() if measure is not None else []

    def waiting_text(self, job: Job) -> str:
        """Why a submitted job does not run yet."""
        if self.state == "loading":
            return f"{self.message}. Your video starts as soon as it is loaded."
        ahead = self.ahead(job)
        if not ahead:
            return "Starting…"
        jobs = f"Waiting for {ahead} other job{'s' if ahead > 1 else ''}"
        seconds = self.wait_seconds(job)
        return f"{jobs}…" if seconds is None else f"{jobs}, about {duration(seconds)}…"

    def status(self) -> dict[str, Any]:
        """The worker in one line: {"state": loading|ready|busy|failed, "message": sentence}."""
        with self._wake:
            running, waiting = self._running, len(self._queue)
        if self.state != "ready" or running is None:
            return {"state": self.state, "message": self.message}
        more = f", {waiting} waiting" if waiting else ""
        return {"state": "busy", "message": f"{self.name} is making a video{more}"}

    def _serve(self) -> None:
        try:
            pipeline = self._pipeline = self._load(self._say)
        except Exception as error:
            log.exception("the checkpoint could not be loaded")
            self.message = f"{self.name} could not be loaded: {sentence(error)}"
            self.state = "failed"
            with self._wake:
                waiting = list(self._queue)
                self._queue.clear()
            for job in waiting:
                self._end(job, "failed", self.message)
            return
        self.message = f"{self.name} is ready"
        self.state = "ready"
        while True:
            with self._wake:
                while not self._queue:
                    self._wake.wait()
                job = self._running = self._queue.popleft()
            self._run(pipeline, job)
            with self._wake:
                self._running = None

    def _say(self, message: str) -> None:
        self.message = message

    def _run(self, pipeline: Generator, job: Job) -> None:
        def on_step(update: StepUpdate) -> None:
            job.note(update)
            job.check_stop()

        try:
            job.check_stop()
            job.folder.mkdir(parents=True)
            job.started = time.time()
            job.state = "running"
            job.run(pipeline, on_step)
            (job.folder / "report.json").write_text(json.dumps(job.report(), indent=2))
        except Cancelled:
            self._end(job, "stopped")
        except Exception as error:
            if not isinstance(error, ValueError):
                log.exception("job %s failed", job.id)
            self._end(job, "failed", sentence(error))
        else:
            self._end(job, "done")

    def _end(self, job: Job, state: str, error: str = "") -> None:
        job.error = error
        job.ended = time.time()
        job.state = state
        job.version += 1
        self._tell(self.listeners, job)

    @staticmethod
    def _tell(listeners: list[Callable[[Job], None]], job: Job) -> None:
        for listener in listeners:
            try:
                listener(job)
            except Exception:
                log.exception("a listener failed on job %s", job.id)


def duration(seconds: float) -> str:
    """A rough length of time in words: 40 s, 3 min, 1 h 20 min."""
    if seconds < 1:
        return "1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def sentence(error: Exception) -> str:
    """One line for people: our own errors as they are, anything else with its type and a remedy."""
    text = " ".join(str(error).split())
    if isinstance(error, ValueError):
        return text
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return "the device ran out of memory; use a smaller size, fewer frames or a higher sparsity"
    if isinstance(error, OSError):
        return f"the video could not be written ({text}); check space and permission of the output folder"
    return f"{type(error).__name__}: {text or 'no message'}; the server's log has the details"
