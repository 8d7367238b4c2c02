"""One worker thread owns the engine and runs jobs one after another.

Handlers of the page never run the model themselves. They submit a `Job` and follow it, because Gradio drops progress
calls from other threads.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pipeline import Cancelled, StepUpdate, inspect_checkpoint
from pipeline.engine.process import EngineDied, EngineProcess, InProcess, Load
from pipeline.machine.gpus import Device
from pipeline.machine.whole_files import write_whole
from pipeline.request.load_options import LoadOptions
from ui.jobs.errands import Calibration, Loading
from ui.jobs.failures import NOT_READ, sentence
from ui.jobs.job import Job, tell
from ui.jobs.queue import JobQueue

log = logging.getLogger("ui")

MAX_WAITING = 200
MAX_WAITING_OF_ONE = 20
KEPT_JOBS = 100  # finished ones that can still be found; a history keeps more, on disk
RETRY_SECONDS = 1.0  # before the second start of an engine, twice that before the third
MOST_RETRY_SECONDS = 60.0  # before another job has it started again, after all of these have failed
STEADY_SECONDS = 60.0  # an engine that ran for so long did not fail to start
JOIN_SECONDS = 5.0

LOADING = "Loading {name}"
READY = "{name} is ready"
RESTARTING = "Starting {name} again"
NOT_LOADED = "{name} could not be loaded: {reason}"
BUSY = "{name} is making a video"
BUSY_WAITING = "{name} is making a video, {waiting} waiting"
CLOSING = "the server is shutting down; try again when it runs again"
WAIT_FOR_LOADING = "{message}. Your video starts as soon as it is loaded."


AnyJob = TypeVar("AnyJob", bound=Job)


class Worker:
    """Starts the engine in the background, then runs submitted jobs in order, one at a time. A job with several parts
    lets others pass between them.

    engine: an `EngineProcess`, which is started again when it has died; or a function that loads a pipeline into this
        process. When it cannot be started, the reason becomes the status sentence, and every job that waits fails with
        it. The next job has it started once more, after a while, unless what was asked for is the reason (ValueError).
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
        engine: EngineProcess | Load,
        output_dir: Path,
        name: str,
        *,
        max_waiting: int = MAX_WAITING,
        max_waiting_of_one: int = MAX_WAITING_OF_ONE,
        kept_jobs: int = KEPT_JOBS,
    ) -> None:
        self.output_dir = output_dir
        self.name = name
        self.state = "loading"
        self.message = LOADING.format(name=name)
        self.admit: list[Callable[[Job], None]] = []
        self.on_submit: list[Callable[[Job], None]] = []
        self.on_part: list[Callable[[Job], None]] = []
        self.listeners: list[Callable[[Job], None]] = []
        self.on_close: list[Callable[[], None]] = []
        self.archive: Callable[[str], Job | None] = lambda job_id: None
        self.public: dict[str, Job] = {}
        self.queue = JobQueue(max_waiting, max_waiting_of_one, kept_jobs)
        self._engine = engine if isinstance(engine, EngineProcess) else InProcess(engine)
        self._engine.on_exit = self._notice
        self._pipeline: Any = None  # a Generator, or None while none is loaded
        self._starts = 0
        self._started = 0.0
        self._hopeless = False  # the same start again would end in the same way
        self._given_up = 0  # times in a row
        self._retry_at = 0.0
        self._wake = self.queue.changed
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="video-worker", daemon=True)

    def start(self) -> Worker:
        self._thread.start()
        return self

    def close(self) -> None:
        """End the running job, all waiting jobs and the engine at once."""
        with self._wake:
            self._closed = True
            if self.queue.running is not None:
                self.queue.running.stop()
            self._wake.notify_all()
        for job in self.queue.clear(errands=True):
            self._end(job, "stopped")
        self._engine.close()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(JOIN_SECONDS)
        for done in self.on_close:
            done()

    def submit(self, job: AnyJob) -> AnyJob:
        """Queue a job and return it. Raises ValueError if too many wait, nothing can run, or `admit` refuses it."""
        if not job.errand:
            self._check_room(job)
            for check in self.admit:
                check(job)
            job.folder = self.output_dir / f"{time.strftime('%Y%m%d-%H%M%S')}-{job.id}"
        job.submitted = time.time()
        if not job.errand:
            tell(self.on_submit, job)
        with self._wake:
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
        self._engine.check_switch(path)
        return self.submit(Loading(self._switch, inspect_checkpoint(path), owner=owner))

    def calibrate(self) -> list[dict[str, Any]]:
        """Measure this machine in the model's process, after the jobs that wait now. Waits for the measurements.

        Raises:
            ValueError: the measurement failed; the sentence has the reason.
        """
        errand = self.submit(Calibration(self._engine.calibrate))
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
        with self._wake:
            waited = self.queue.remove(job)
            if not waited and job is self.queue.running:
                self._engine.cancel()
        if waited:
            self._end(job, "stopped")

    def ahead(self, job: Job) -> int:
        """Number of jobs that will run before this one, including the running job."""
        return len(self.queue.before(job))

    def waiting_text(self, job: Job) -> str:
        """The reason why a submitted job does not run yet, as a sentence."""
        if self.state == "loading":
            return WAIT_FOR_LOADING.format(message=self.message)
        return self.queue.waiting_text(job)

    def status(self) -> dict[str, Any]:
        """The worker's state: {"state": loading|ready|busy|failed, "message": sentence}."""
        with self._wake:
            running, waiting = self.queue.running, len(self.queue)
        if self.state != "ready" or running is None:
            return {"state": self.state, "message": self.message}
        message = BUSY_WAITING.format(name=self.name, waiting=waiting) if waiting else BUSY.format(name=self.name)
        return {"state": "busy", "message": message}

    @property
    def engine_pid(self) -> int:
        """Id of the process that runs the model and holds its memory. This process while there is no other."""
        return self._engine.pid or os.getpid()

    @property
    def device(self) -> Device | None:
        """The device of the loaded model, or None while none is loaded."""
        return None if self._pipeline is None else self._pipeline.device

    @property
    def weights(self) -> LoadOptions:
        """The options that the model's weights are loaded with."""
        return self._engine.weights

    def torch_memory(self) -> dict[str, int] | None:
        """Latest known bytes "allocated" and "reserved" by PyTorch's CUDA allocator, or None on a CPU."""
        return self._engine.torch_memory()

    def _check_room(self, job: Job) -> None:
        if self._closed:
            raise ValueError(CLOSING)
        if self.state == "failed" and self._hopeless:
            raise ValueError(self.message)
        self.queue.check_room(job.owner, job.address)

    def _notice(self) -> None:
        with self._wake:
            self._wake.notify_all()

    def _serve(self) -> None:
        self._start_engine()
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closed or len(self.queue) or self._engine_lost)
                if self._closed:
                    return
                job = None if self._engine_lost or self._try_again else self.queue.take()
            if job is None:
                self._start_engine()
            else:
                self._run(job)
                self._starts = 0  # the start succeeded, whatever became of the job

    @property
    def _engine_lost(self) -> bool:
        return self.state == "ready" and not self._engine.alive

    @property
    def _try_again(self) -> bool:
        """Whether the next job is one for which an engine that could not be started is started once more."""
        return self.state == "failed" and not self._hopeless and not self.queue.first_is_errand

    def _start_engine(self) -> bool:
        """Start the engine, a few times if need be. Without success every waiting job fails."""
        if self._given_up or time.monotonic() - self._started > STEADY_SECONDS:
            self._starts = 0
        if self._pipeline is not None or self._given_up:
            self.message = RESTARTING.format(name=self.name)
        self.state = "loading"
        with self._wake:
            self._wake.wait_for(lambda: self._closed, max(0.0, self._retry_at - time.monotonic()))
        error: Exception | None = None
        while self._starts < self._engine.tries:
            with self._wake:
                self._wake.wait_for(lambda: self._closed, RETRY_SECONDS * self._starts)
                if self._closed:
                    return False
            self._starts += 1
            try:
                self._pipeline = self._engine.start(self._say)
            except Exception as caught:
                error = caught
                if not self._closed:
                    log.error("the engine could not be started", exc_info=caught)
                if isinstance(caught, ValueError):  # another attempt would fail in the same way
                    break
            else:
                self._started, self._given_up, self._hopeless = time.monotonic(), 0, False
                self.message = READY.format(name=self.name)
                self.state = "ready"
                return True
        self._give_up(error or EngineDied(self._engine.why))
        return False

    def _give_up(self, error: Exception) -> None:
        self.message = NOT_LOADED.format(name=self.name, reason=sentence(error, NOT_READ))
        self._hopeless = isinstance(error, ValueError)
        self._given_up += 1
        pause = min(MOST_RETRY_SECONDS, RETRY_SECONDS * 2 ** (self._given_up + 1))
        self._retry_at = time.monotonic() + pause
        with self._wake:
            self.state = "failed"
            waiting = self.queue.clear(errands=False)
        for job in waiting:
            self._end(job, "failed", self.message)

    def _switch(self, path: Path, name: str) -> None:
        """Load another checkpoint, or the former one if that fails. A `Loading` calls this in the worker's thread.

        Raises ValueError if the former one was loaded again.
        """
        former, reason = (self._engine.path, self.name), ""
        for checkpoint in ((path, name), former):
            self._engine.switch(checkpoint[0])
            self.name, self._starts, self._pipeline, self._retry_at = checkpoint[1], 0, None, 0.0
            self.message = LOADING.format(name=self.name)
            if self._start_engine():
                break
            reason = reason or self.message
        if reason:
            raise ValueError(reason)

    def _say(self, message: str) -> None:
        self.message = message

    def _run(self, job: Job) -> None:
        def on_step(update: StepUpdate) -> None:
            job.note(update)
            job.check_stop()

        try:
            job.check_stop()
            if not job.started:
                if not job.errand:
                    job.folder.mkdir(parents=True)
                job.started = time.time()
            job.state = "running"
            job.run(self._pipeline, on_step)
            while job.unfinished:
                tell(self.on_part, job)
                if self.queue.give_way(job):
                    return
                job.run(self._pipeline, on_step)
            if not job.errand:
                write_whole(job.folder / "report.json", json.dumps(job.report(), indent=2))
        except Cancelled:
            self._end(job, "stopped")
        except Exception as error:
            if isinstance(error, EngineDied) and job.stopping:
                self._end(job, "stopped")
                return
            if not isinstance(error, (ValueError, EngineDied)):
                log.exception("job %s failed", job.id)
            self._end(job, "failed", sentence(error))
        else:
            self._end(job, "done")

    def _end(self, job: Job, state: str, error: str = "") -> None:
        job.end(state, error, [] if job.errand else self.listeners)
        self.queue.end(job)
