"""One engine of the worker, and the thread that runs the queue's jobs on it.

Every engine has a runner. It starts its engine, takes the next job whenever it is free, and starts the engine again
when that has died. Decisions that concern all engines belong to the `Crew`.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import Cancelled, StepUpdate
from pipeline.engine.engine import Engine
from pipeline.engine.parent import EngineDied
from pipeline.machine.gpus import Device
from pipeline.machine.whole_files import write_whole
from ui.jobs.errands import Errand
from ui.jobs.failures import NOT_READ, TWICE, sentence
from ui.jobs.job import Job
from ui.jobs.queue import JobQueue

log = logging.getLogger("ui")

RETRY_SECONDS = 1.0  # before the second start of an engine, twice that before the third
MOST_RETRY_SECONDS = 60.0  # before another job has it started again, after all of these have failed
STEADY_SECONDS = 60.0  # an engine that ran for so long did not fail to start
JOIN_SECONDS = 5.0

LOADING = "Loading {name}"
READY = "{name} is ready"
RESTARTING = "Starting {name} again"
NOT_LOADED = "{name} could not be loaded: {reason}"


@dataclass(frozen=True)
class Crew:
    """The state that the runners of one worker share.

    runners: all of them.
    end: called with a job that has ended, its state and its error.
    part: called with a job of several parts after each of them.
    gave_up: called with the reason when an engine could not be started.
    """

    queue: JobQueue
    runners: list[Runner]
    end: Callable[[Job, str, str], None]
    part: Callable[[Job], None]
    gave_up: Callable[[str], None]


class Runner:
    """Starts an engine in the background, then runs the queue's jobs on it, one at a time.

    number: of the engine, from 0 on. name: of the model that it loads.
    state: loading, ready or failed, with a sentence in `message`.
    given_up: how many times in a row it could not be started, also while it is tried once more.
    hopeless: whether the same start again would end in the same way.
    job: the one that it is at.
    """

    def __init__(self, number: int, engine: Engine, name: str, crew: Crew) -> None:
        self.number = number
        self.engine = engine
        self.name = name
        self.state = "loading"
        self.message = LOADING.format(name=name)
        self.given_up = 0
        self.hopeless = False
        self.job: Job | None = None
        self._crew = crew
        self._pipeline: Any = None  # a Generator, or None while none is loaded
        self._due = True  # to be started
        self._starts = 0
        self._started = 0.0
        self._retry_at = 0.0
        self._queue = crew.queue
        self._wake = crew.queue.changed
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name=f"video-worker-{number}", daemon=True)
        engine.on_exit = self._notice

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the engine at once, and take no more jobs. `join` waits for that."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        self.engine.close()

    def join(self) -> None:
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(JOIN_SECONDS)

    @property
    def pid(self) -> int:
        """Id of the process that holds the model; this process while there is no other."""
        return self.engine.pid or os.getpid()

    @property
    def device(self) -> Device | None:
        """The device of the loaded model, or None while none is loaded."""
        return None if self._pipeline is None else self._pipeline.device

    def switch(self, path: Path, name: str) -> None:
        """Load another checkpoint, or the former one if that fails. To be called in this runner's thread.

        Raises ValueError if the former one was loaded again.
        """
        former, reason = (self.engine.path, self.name), ""
        for checkpoint in ((path, name), former):
            self._take(*checkpoint)
            if self._start_engine():
                break
            reason = reason or self.message
        if reason:
            raise ValueError(reason)

    def follow(self, path: Path, name: str) -> None:
        """Load the checkpoint that another runner has loaded. Returns at once; it must have no job."""
        with self._wake:
            self._take(path, name)
            self.state, self.hopeless, self.given_up, self._due = "loading", False, 0, True
            self._wake.notify_all()

    def _take(self, path: Path, name: str) -> None:
        self.engine.switch(path)
        self.name, self._starts, self._pipeline, self._retry_at = name, 0, None, 0.0
        self.message = LOADING.format(name=name)

    def _notice(self) -> None:
        with self._wake:
            self._wake.notify_all()

    def _serve(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closed or self._must_start or self._may_take)
                if self._closed:
                    return
                job = self.job = None if self._must_start else self._queue.take()
            if job is None:
                self._start_engine()
            else:
                self._run(job)
                self.job = None
                self._starts = 0  # the start succeeded, whatever became of the job

    @property
    def _must_start(self) -> bool:
        if self._due or (self.state == "ready" and not self.engine.alive):
            return True
        # one that could not be started is started once more for the next job
        again = self.state == "failed" and not self.hopeless
        return again and bool(len(self._queue)) and not self._queue.first_is_errand

    @property
    def _may_take(self) -> bool:
        """Where no engine could be started, any takes errands, of which one may load what can be started, and jobs that
        came too late to be refused."""
        if not self._queue.ready or self.state == "ready":
            return self._queue.ready
        if any(runner.state != "failed" for runner in self._crew.runners):
            return False
        return self._queue.first_is_errand or all(runner.hopeless for runner in self._crew.runners)

    def _start_engine(self) -> bool:
        """Start the engine, a few times if need be."""
        if self.given_up or time.monotonic() - self._started > STEADY_SECONDS:
            self._starts = 0
        if self._pipeline is not None or self.given_up:
            self.message = RESTARTING.format(name=self.name)
        self.state, self._due = "loading", False
        with self._wake:
            self._wake.wait_for(lambda: self._closed, max(0.0, self._retry_at - time.monotonic()))
        error: Exception | None = None
        while self._starts < self.engine.tries:
            with self._wake:
                self._wake.wait_for(lambda: self._closed, RETRY_SECONDS * self._starts)
                if self._closed:
                    return False
            self._starts += 1
            try:
                self._pipeline = self.engine.start(self._say)
            except Exception as caught:
                error = caught
                if not self._closed:
                    log.error("engine %d could not be started", self.number + 1, exc_info=caught)
                if isinstance(caught, ValueError):  # another attempt would fail in the same way
                    break
            else:
                self._started, self.given_up, self.hopeless = time.monotonic(), 0, False
                self.message = READY.format(name=self.name)
                self.state = "ready"
                return True
        self._give_up(error or EngineDied(self.engine.why))
        return False

    def _give_up(self, error: Exception) -> None:
        self.message = NOT_LOADED.format(name=self.name, reason=sentence(error, NOT_READ))
        self.hopeless = isinstance(error, ValueError)
        self.given_up += 1
        pause = min(MOST_RETRY_SECONDS, RETRY_SECONDS * 2 ** (self.given_up + 1))
        self._retry_at = time.monotonic() + pause
        with self._wake:
            self.state = "failed"
        self._crew.gave_up(self.message)

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
                    job.folder.mkdir(parents=True, exist_ok=job.lost > 0)
                job.started = time.time()
            job.state, job.engine = "running", self.number
            if isinstance(job, Errand):
                job.perform(self.engine)
            elif self._pipeline is None:
                raise ValueError(self.message)
            else:
                job.run(self._pipeline, on_step)
            while job.unfinished:
                self._crew.part(job)
                if self._queue.give_way(job):
                    return
                job.run(self._pipeline, on_step)
            if not job.errand:
                write_whole(job.folder / "report.json", json.dumps(job.report(), indent=2))
        except Cancelled:
            self._crew.end(job, "stopped", "")
        except EngineDied as error:
            if job.lose_engine() and not self._closed:
                log.warning("job %s lost engine %d and is put back", job.id, self.number + 1)
                self._queue.put_back(job)
            elif job.stopping:
                self._crew.end(job, "stopped", "")
            else:
                self._crew.end(job, "failed", (TWICE if job.lost > 1 else "{reason}").format(reason=sentence(error)))
        except Exception as error:
            if not isinstance(error, ValueError):
                log.exception("job %s failed", job.id)
            self._crew.end(job, "failed", sentence(error))
        else:
            self._crew.end(job, "done", "")
