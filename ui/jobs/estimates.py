"""Estimates for the page: for the worker's device, and improved by every job that it finishes."""

from __future__ import annotations

import logging
import threading
import time

from pipeline import CheckpointInfo, VideoRequest, VideoResult
from pipeline.estimate.advice import Advice, advise
from pipeline.estimate.choose_attention import choose_attention
from pipeline.estimate.estimator import FILE_NAME, Estimate, Estimator
from pipeline.machine.device import expected_device
from pipeline.machine.gpus import Device
from pipeline.machine.memory import available_memory, held_memory, total_memory
from pipeline.runs.plan import Plan, plan
from ui.jobs.job import Job, VideoJob
from ui.jobs.runner import Runner
from ui.jobs.worker import Worker

log = logging.getLogger("ui")

POLL_SECONDS = 0.5
MEMORY_SECONDS = 2.0  # a reading of the free memory is used for this long


class Estimates:
    """Estimates requests before they run. The worker uses it to refuse jobs and to predict their seconds.

    device: "auto", "cpu", "cuda" or "cuda:N", as for the worker's pipeline.
    A checkpoint whose size cannot be read has no estimates. Everything is None then, and nothing is refused for lack of
    memory.
    """

    def __init__(self, checkpoint: CheckpointInfo, worker: Worker, device: str = "auto") -> None:
        self._expected = expected_device(device)
        self._worker = worker
        self._estimator: Estimator | None = None
        self._memory: tuple[float, int | None] = (float("-inf"), None)
        self._calibration: threading.Thread | None = None
        worker.admit.append(self._admit)
        worker.on_submit.append(self._expect)
        worker.listeners.append(self._observe)
        worker.queue.predict = self.seconds
        self.use(checkpoint)

    def use(self, checkpoint: CheckpointInfo) -> None:
        """Make estimates for this checkpoint from now on. The worker loads it or has loaded it."""
        self._checkpoint = checkpoint
        try:
            store = self._worker.output_dir / FILE_NAME
            weights, engines = self._worker.weights, len(self._worker.runners)
            self._estimator = Estimator(checkpoint, self.device, store, weights, engines)
        except ValueError as error:
            log.info("no estimates: %s", error)
            self._estimator = None
            return
        finally:
            self._worker.queue.predict_anew()
        self._calibration = threading.Thread(
            target=self._calibrate, args=(self._estimator,), name="calibration", daemon=True
        )
        self._calibration.start()

    @property
    def device(self) -> Device:
        """The device on which the model runs, or is expected to run while none is loaded."""
        return self._worker.device or self._expected

    @property
    def pending(self) -> bool:
        """Whether a measurement of this machine is still to come, so that estimates will change by themselves."""
        return self._calibration is not None and self._calibration.is_alive()

    def of(self, request: VideoRequest) -> Estimate | None:
        return None if self._estimator is None else self._estimator.estimate(request)

    def available(self) -> int | None:
        """Bytes that a video may take on an engine, its loaded weights included: on a GPU where the engines have
        different ones that with the least, and of this machine's memory each engine's part. Read again every few
        seconds."""
        estimator = self._estimator
        if estimator is None:
            return None
        taken, size = self._memory
        if time.monotonic() - taken > MEMORY_SECONDS:
            size = self._read_available()
            self._memory = time.monotonic(), size
        return size

    def _read_available(self) -> int | None:
        runners = self._worker.runners
        elsewhere = [there for runner in runners if (there := runner.engine.reading()) is not None]
        if elsewhere:
            return min((there.available for there in elsewhere if there.total), default=None)
        if self.device.type != "cuda":
            return (available_memory(self.device) + self.held()) // len(runners)
        return min(available_memory(runner.device or self.device) + _reserved(runner) for runner in runners)

    def plan(self, request: VideoRequest) -> Plan:
        """The plan of a request. Raises ValueError if it cannot run."""
        available, weights = self.available(), self._worker.weights
        return plan(self._checkpoint, request, weights, self.device, estimator=self._estimator, available=available)

    def ratio(self, request: VideoRequest) -> float | None:
        """Expected denoising time with dense attention, divided by the request's own."""
        sparse, dense = self.of(request), self.of(request.dense)
        return None if sparse is None or dense is None else sparse.speedup(dense)

    def advice(self, request: VideoRequest) -> Advice | None:
        estimate = self.of(request)
        return advise(request, self.ratio, None if estimate is None else estimate.memory, self.available())

    def denoising(self, request: VideoRequest) -> float | None:
        """Expected seconds of denoising, or None if unknown."""
        return None if self._estimator is None else self._estimator.denoising(request)

    def choose(self, request: VideoRequest) -> VideoRequest:
        """The request with the attention that suits it on this machine; its `auto` says why."""
        return choose_attention(request, self._checkpoint.sparse, self.of, self.available())

    def seconds(self, job: Job) -> float | None:
        """Expected seconds of a job, or None if unknown."""
        total = 0.0
        for request in job_requests(job):
            estimate = self.of(request)
            if estimate is None or estimate.seconds is None:
                return None
            total += estimate.seconds["total"]
        return total or None

    def held(self) -> int:
        """Bytes of the device's memory that the worker's engines already hold and would use for the next video: of the
        first one's GPU, or of this machine's memory."""
        runners = self._worker.runners
        if self.device.type == "cuda":
            return _reserved(runners[0])
        return sum(held_memory(self.device, pid) for pid in {runner.pid for runner in runners})

    def total(self) -> int:
        """Size of the device's memory in bytes."""
        there = self._worker.runners[0].engine.reading()
        return total_memory(self.device) if there is None else there.total

    def _admit(self, job: Job) -> None:
        for request in job_requests(job):
            self.plan(request)

    def _expect(self, job: Job) -> None:
        if isinstance(job, VideoJob) and job.side_by_side:
            job.speedup = self.ratio(job.request)

    def _observe(self, job: Job) -> None:
        estimator, learnt = self._estimator, False
        for result in getattr(job, "made", ()):
            if estimator is not None and isinstance(result, VideoResult):
                estimator.observe(result)
                learnt = True
        if learnt:
            self._worker.queue.predict_anew()

    def _calibrate(self, estimator: Estimator) -> None:
        """Measure a machine that was not measured before, once the model is loaded and no job waits."""
        while self._worker.state == "loading":
            time.sleep(POLL_SECONDS)
        if str(self.device) != str(estimator.device):
            self.use(estimator.info)
            return
        if self._worker.state == "failed" or estimator.calibrated:
            return
        try:
            if points := self._worker.calibrate():
                estimator.calibrate(points)
                self._worker.queue.predict_anew()
        except Exception as error:
            log.warning("no calibration, so estimates come with the first video: %s", error)


def _reserved(runner: Runner) -> int:
    memory = runner.engine.torch_memory()
    return memory["reserved"] if memory else 0


def job_requests(job: Job) -> list[VideoRequest]:
    """The videos that a job makes."""
    if (requests := getattr(job, "requests", None)) is not None:
        return list(requests)
    request = getattr(job, "request", None)
    if request is None:
        return []
    return [request.dense, request] if getattr(job, "side_by_side", False) else [request]
