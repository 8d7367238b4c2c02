"""The worker owns the engines and the queue from which they take jobs.

Handlers of the page never run the model themselves. They submit a `Job` and follow it, because Gradio drops progress
calls from other threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipeline import inspect_checkpoint
from pipeline.engine.engine import Engine
from pipeline.engine.process import InProcess, Load
from pipeline.machine.gpus import Device
from pipeline.request.load_options import LoadOptions
from ui.jobs.errands import Calibration, Loading
from ui.jobs.job import Job, tell
from ui.jobs.queue import JobQueue
from ui.jobs.runner import Crew, Runner

MAX_WAITING = 200
MAX_WAITING_OF_ONE = 20
KEPT_JOBS = 100  # finished ones that can still be found; a history keeps more, on disk
LIVES = 2  # of a job where there are other engines or machines: one that loses its engine is made once more

READY_SOME = "{name} is ready on {ready} of {count} engines"
BUSY = "{name} is making a video"
BUSY_WAITING = "{name} is making a video, {waiting} waiting"
BUSY_MANY = "{name} is making {running} videos"
BUSY_MANY_WAITING = "{name} is making {running} videos, {waiting} waiting"
AGAIN = "Its engine ended, so this video is made once more. {waiting}"
CLOSING = "the server is shutting down; try again when it runs again"
WAIT_FOR_LOADING = "{message}. Your video starts as soon as it is loaded."


AnyJob = TypeVar("AnyJob", bound=Job)


class Worker:
    """Starts the engines in the background, then runs submitted jobs in order, one at a time on each engine. A job with
    several parts lets others pass between them.

    engine: one engine or several, which are started again when they have died; or a function that loads a pipeline into
        this process. When none can be started, the reason becomes the status sentence, and every job that waits fails
        with it. The next job has them started once more, after a while, unless what was asked for is the reason
        (ValueError). With several, or on other machines, a job that loses its engine is put back once.
    output_dir: each job writes into its own new folder below it.
    max_waiting, max_waiting_of_one: jobs that may wait, in all and of one owner. Jobs without an owner count in all.
    admit: each is called with every new job and may refuse it with a ValueError.
    on_submit: each is called with every new job, before it can run. What it raises is logged.
    on_part: each is called with a job of several parts after each of them. What it raises is logged.
    listeners: each is called with every job that has ended, by whichever thread ended it. What it raises is logged.
    on_close: each is called when all jobs have ended because the server does.
    archive: finds jobs by id that this worker does not remember.
    public: jobs by id that everybody may see; nobody may delete or stop them.
    """

    def __init__(
        self,
        engine: Engine | Load | Sequence[Engine],
        output_dir: Path,
        name: str,
        *,
        max_waiting: int = MAX_WAITING,
        max_waiting_of_one: int = MAX_WAITING_OF_ONE,
        kept_jobs: int = KEPT_JOBS,
    ) -> None:
        self.output_dir = output_dir
        self.admit: list[Callable[[Job], None]] = []
        self.on_submit: list[Callable[[Job], None]] = []
        self.on_part: list[Callable[[Job], None]] = []
        self.listeners: list[Callable[[Job], None]] = []
        self.on_close: list[Callable[[], None]] = []
        self.archive: Callable[[str], Job | None] = lambda job_id: None
        self.public: dict[str, Job] = {}
        self.queue = JobQueue(max_waiting, max_waiting_of_one, kept_jobs)
        self._closed = False
        engines = engine if isinstance(engine, Sequence) else [InProcess(engine) if callable(engine) else engine]
        self.runners: list[Runner] = []
        crew = Crew(self.queue, self.runners, self._end, lambda job: tell(self.on_part, job), self._gave_up)
        self.runners += [Runner(number, one, name, crew) for number, one in enumerate(engines)]
        self._lives = LIVES if len(engines) > 1 or engines[0].reading() is not None else 1
        self.queue.engines = lambda: sum(runner.state != "failed" for runner in self.runners)

    def start(self) -> Worker:
        for runner in self.runners:
            runner.start()
        return self

    def close(self) -> None:
        """End the running jobs, all waiting jobs and the engines at once."""
        with self.queue.changed:
            self._closed = True
            for job in self.queue.running:
                job.stop()
        for job in self.queue.clear(errands=True):
            self._end(job, "stopped")
        for runner in self.runners:
            runner.close()
        for runner in self.runners:
            runner.join()
        for done in self.on_close:
            done()

    def submit(self, job: AnyJob) -> AnyJob:
        """Queue a job and return it. Raises ValueError if too many wait, nothing can run, or `admit` refuses it."""
        if not job.errand:
            self._check_room(job)
            for check in self.admit:
                check(job)
            job.folder = self.output_dir / f"{time.strftime('%Y%m%d-%H%M%S')}-{job.id}"
            job.lives = self._lives
        job.submitted = time.time()
        if not job.errand:
            tell(self.on_submit, job)
        with self.queue.changed:
            if self._closed:
                raise ValueError(CLOSING)
            self.queue.put(job)
        return job

    def load(self, path: str | Path, owner: str = "") -> Loading:
        """Change to the checkpoint `path` after the jobs that wait now. Returns the job that does it.

        If the checkpoint cannot be loaded, this job fails with the reason, and the former checkpoint is loaded again.

        Raises:
            ValueError: `path` is not a complete checkpoint, or this engine cannot change its checkpoint.
        """
        self.runners[0].engine.check_switch(path)
        return self.submit(Loading(self._switch, inspect_checkpoint(path), owner=owner))

    def calibrate(self) -> list[dict[str, Any]]:
        """Measure the machine in an engine's process, after the jobs that wait now. Waits for the measurements.

        Raises:
            ValueError: the measurement failed; the sentence has the reason.
        """
        errand = self.submit(Calibration())
        errand.wait()
        if errand.state != "done":
            raise ValueError(errand.error or CLOSING)
        return errand.points

    def find(self, job_id: str, owner: str) -> Job | None:
        """The job with this id if it belongs to the owner, or to all. None for a job of others, or a forgotten one."""
        job = self.find_any(job_id)
        return job if job is not None and (job.owner == owner or job_id in self.public) else None

    def find_any(self, job_id: str) -> Job | None:
        """The job with this id, whoever owns it. None for a forgotten one."""
        return self.public.get(job_id) or self.queue.get(job_id) or self.archive(job_id)

    def live(self, owner: str) -> list[Job]:
        """The owner's running and waiting jobs, in the order in which they run."""
        return self.queue.live(owner)

    def forget(self, job_id: str) -> None:
        """Forget an ended job that was deleted."""
        self.queue.forget(job_id)

    def adopt(self, job: Job) -> None:
        """Make a job findable that ended without running here, such as a cell of a sweep."""
        if self.queue.get(job.id) is None:
            self.queue.remember(job)

    def stop(self, job: Job) -> None:
        """End a job: at once if it waits, at its next step if it runs."""
        job.stop()
        with self.queue.changed:
            waited = self.queue.remove(job)
            for runner in self.runners:
                if not waited and job is runner.job:
                    runner.engine.cancel()
        if waited:
            self._end(job, "stopped")

    def ahead(self, job: Job) -> int:
        """Number of jobs that will begin before this one, including those that run."""
        return len(self.queue.before(job))

    def waiting_text(self, job: Job) -> str:
        """The reason why a submitted job does not run yet, as a sentence."""
        if self.state == "loading":
            return WAIT_FOR_LOADING.format(message=self.message)
        waiting = self.queue.waiting_text(job)
        return AGAIN.format(waiting=waiting) if job.lost and not job.started else waiting

    @property
    def name(self) -> str:
        """Of the model."""
        return self.runners[0].name

    @property
    def state(self) -> str:
        """ready as soon as one engine is, else loading as long as one may become so, else failed."""
        states = {runner.state for runner in self.runners}
        return next(state for state in ("ready", "loading", "failed") if state in states)

    @property
    def message(self) -> str:
        """The state as a sentence."""
        ready = sum(runner.state == "ready" for runner in self.runners)
        if 0 < ready < len(self.runners):
            return READY_SOME.format(name=self.name, ready=ready, count=len(self.runners))
        state = self.state
        return next((runner.message for runner in self.runners if runner.state == state), self.runners[0].message)

    def status(self) -> dict[str, Any]:
        """The worker's state: {"state": loading|ready|busy|failed, "message": sentence}."""
        with self.queue.changed:
            running, waiting = len(self.queue.running), len(self.queue)
        if self.state != "ready" or not running:
            return {"state": self.state, "message": self.message}
        alone, others = (BUSY, BUSY_WAITING) if running == 1 else (BUSY_MANY, BUSY_MANY_WAITING)
        message = (others if waiting else alone).format(name=self.name, running=running, waiting=waiting)
        return {"state": "busy", "message": message}

    @property
    def engine_pid(self) -> int:
        """Id of the process that runs the model and holds its memory: of the first engine, where there are several.
        This process while there is no other."""
        return self.runners[0].pid

    @property
    def device(self) -> Device | None:
        """The device of the loaded model, or None while none is loaded."""
        return next((runner.device for runner in self.runners if runner.device is not None), None)

    @property
    def weights(self) -> LoadOptions:
        """The options that the model's weights are loaded with."""
        return self.runners[0].engine.weights

    def torch_memory(self) -> dict[str, int] | None:
        """Latest known bytes "allocated" and "reserved" by the first engine's CUDA allocator, or None on a CPU."""
        return self.runners[0].engine.torch_memory()

    def _check_room(self, job: Job) -> None:
        if self._closed:
            raise ValueError(CLOSING)
        if self.state == "failed" and all(runner.hopeless for runner in self.runners):
            raise ValueError(self.message)
        self.queue.check_room(job.owner, job.address)

    def _switch(self, engine: Engine, path: Path, name: str) -> None:
        """Load another checkpoint, or the former one if that fails. A `Loading` calls this in the thread of the engine
        that tries it; if it can be loaded there, the others load it too.

        Raises ValueError if the former one was loaded again.
        """
        first = next(runner for runner in self.runners if runner.engine is engine)
        first.switch(path, name)
        for runner in self.runners:
            if runner is not first:
                runner.follow(path, name)

    def _gave_up(self, message: str) -> None:
        """An engine could not be started. If none is left, what waits has waited in vain."""
        with self.queue.changed:
            lost = all(runner.given_up for runner in self.runners)
            waiting = self.queue.clear(errands=False) if lost else []
        for job in waiting:
            self._end(job, "failed", message)

    def _end(self, job: Job, state: str, error: str = "") -> None:
        job.end(state, error, [] if job.errand else self.listeners)
        self.queue.end(job)
