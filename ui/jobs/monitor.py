"""Observes the machine while jobs run: readings from threads of the server, and a trace for each job."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.machine.resources import Resources, ResourceSampler
from pipeline.machine.whole_files import write_whole
from ui.jobs.job import Job, VideoJob
from ui.jobs.runner import Runner
from ui.jobs.worker import Worker

TRACE = "resources.json"
POINTS = 2000  # of a trace; finer than any screen
MOST_OWNERS = 1000


class Span(NamedTuple):
    """One phase of one video of a job. Times are `time.time()`."""

    arm: str
    phase: str
    start: float
    end: float


class Monitor:
    """Samples the machine and the worker's engines from its first use on, and writes a trace when a job ends."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._last: OrderedDict[str, Job] = OrderedDict()  # owner -> the job that ended last
        self.samplers = [_sampler_of(runner) for runner in worker.runners]
        worker.listeners.append(self._keep)

    def current(self, owner: str, chosen: str = "", since: float = 0.0) -> Job | None:
        """The owner's running job, else the one that ended last, unless the owner chose another after its end."""
        running = next((job for job in self._worker.live(owner) if job.state == "running"), None)
        last = self._last.get(owner)
        if running is not None or (last is not None and (not chosen or last.ended > since)):
            return running or last
        return self._worker.find(chosen, owner) if chosen else None

    def sampler(self, job: Job | None = None) -> ResourceSampler:
        """Of the engine that a job runs on, or ran on; of the first one for no job."""
        number = 0 if job is None else job.engine
        return self.samplers[number] if number < len(self.samplers) else self.samplers[0]

    def trace(self, job: Job) -> dict[str, Any] | None:
        """The trace of a job, or of a running job so far. None for a job without readings.

        It is {"started", "ended" (None while it runs), "gpus", "spans": [arm, phase, start, end], "peaks": {arm:
        {series: [value, time]}}}. A job that is over also has "times" and "series".
        """
        if job.over:
            return _read(job.folder / TRACE)
        return self._summary(job) if job.started else None

    def _summary(self, job: Job) -> dict[str, Any]:
        sampler = self.sampler(job)
        found = list(spans(job, _now(sampler)))
        return {
            "started": job.started,
            "ended": job.ended or None,
            "gpus": _gpus(sampler),
            "spans": [list(span) for span in found],
            "peaks": _peaks(sampler, found),
        }

    def _keep(self, job: Job) -> None:
        if not job.started or not job.folder.is_dir():
            return
        self._last[job.owner] = job
        self._last.move_to_end(job.owner)
        while len(self._last) > MOST_OWNERS:
            self._last.popitem(last=False)
        sampler = self.sampler(job)
        history = sampler.history(job.started - sampler.interval, job.ended, POINTS)
        series = {name: values for name, values in history.series.items() if name != "busy"}
        trace = self._summary(job) | {"times": history.times, "series": series}
        write_whole(job.folder / TRACE, json.dumps(trace, separators=(",", ":")))


def _sampler_of(runner: Runner) -> ResourceSampler:
    engine = runner.engine

    def elsewhere() -> Resources | None:
        there = engine.reading()
        return None if there is None else there.resources

    return ResourceSampler(
        pid=lambda: runner.pid,
        torch_memory=engine.torch_memory,
        more=lambda: {"busy": 0.0 if runner.state != "ready" or runner.job is None else 1.0},
        only=engine.share.gpus,
        elsewhere=None if engine.reading() is None else elsewhere,
    ).start()


def _peaks(sampler: ResourceSampler, found: list[Span]) -> dict[str, dict[str, list[float]]]:
    peaks: dict[str, dict[str, list[float]]] = {}
    for arm, start, end in _videos(found):
        best = peaks.setdefault(arm, {})
        for name, peak in sampler.peak(start, end).items():
            if name not in best or peak.value > best[name][0]:
                best[name] = list(peak)
    return peaks


def _gpus(sampler: ResourceSampler) -> list[dict[str, Any]]:
    latest = sampler.latest
    gpus = latest.gpus if latest is not None else ()
    return [{"key": gpu.key, "label": gpu.label, "name": gpu.name, "total": gpu.total} for gpu in gpus]


def _now(sampler: ResourceSampler) -> float:
    latest = sampler.latest
    return latest.time if latest is not None else math.inf


def spans(job: Job, now: float) -> Iterator[Span]:
    """The phases of a job so far, in order.

    A video ends when it is finished, or when the next one begins. Later work, such as the comparison of two videos, is
    not part of it.
    """
    marks, stop = list(job.marks), job.ended or now
    begun = 0.0
    for i, mark in enumerate(marks):
        last = i + 1 == len(marks)
        if not i or marks[i - 1].arm != mark.arm or mark.phase == marks[0].phase:
            begun = mark.time
        end = stop if last else marks[i + 1].time
        result = job.results.get(mark.arm) if isinstance(job, VideoJob) else None
        if result is not None and (last or marks[i + 1].arm != mark.arm):
            end = min(end, begun + result.seconds["total"])
        yield Span(mark.arm, mark.phase, mark.time, max(mark.time, end))


def _videos(found: list[Span]) -> Iterator[tuple[str, float, float]]:
    """(arm, start, end) of each video, joined from its phases that follow each other without a gap."""
    for i, span in enumerate(found):
        if not i or (found[i - 1].arm, found[i - 1].end) != (span.arm, span.start):
            start = span.start
        if i + 1 == len(found) or (found[i + 1].arm, found[i + 1].start) != (span.arm, span.end):
            yield span.arm, start, span.end


def job_peaks(job: Job) -> dict[str, dict[str, float]]:
    """{arm: {series: largest sample}} of a job that is over, or {} if it left no trace.

    Names of series are those of `pipeline.machine.resources.Resources.series`.
    """
    trace = _read(job.folder / TRACE) or {}
    return {arm: {name: value for name, (value, _) in peaks.items()} for arm, peaks in trace.get("peaks", {}).items()}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return _parse(str(path), path.stat().st_mtime_ns)
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=32)
def _parse(path: str, version: int) -> dict[str, Any] | None:
    trace = json.loads(Path(path).read_text())
    return trace if isinstance(trace, dict) and "spans" in trace else None
