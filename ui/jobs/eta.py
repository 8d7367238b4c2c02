"""Predicts the seconds of jobs from those of earlier jobs."""

from __future__ import annotations

import statistics
import time
from collections import deque

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


def duration_text(seconds: float) -> str:
    """A duration with the precision of an estimate: "8 s", "40 s", "3 min", "1 h 20 min"."""
    if seconds < 57.5:
        return SECONDS.format(seconds=max(1, round(seconds) if seconds < 9.5 else 5 * round(seconds / 5)))
    minutes = max(1, round(seconds / 60))
    if minutes < 60:
        return MINUTES.format(minutes=minutes)
    return HOURS.format(hours=minutes // 60, minutes=minutes % 60)
