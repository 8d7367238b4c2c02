"""Errands: the worker's own tasks for the engine, between the jobs of people."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pipeline import CheckpointInfo
from pipeline.request.result import Generator, OnStep
from ui.jobs.job import Job


@dataclass(eq=False)
class Errand(Job):
    errand: ClassVar[bool] = True
    _over: threading.Event = field(default_factory=threading.Event, init=False)

    def wait(self) -> None:
        self._over.wait()

    def end(self, *how: Any) -> None:
        super().end(*how)
        self._over.set()


@dataclass(eq=False)
class Calibration(Errand):
    """Measures the machine. `points` holds the measurements."""

    measure: Callable[[], list[dict[str, Any]]]
    points: list[dict[str, Any]] = field(default_factory=list, init=False)

    def run(self, pipeline: Generator, on_step: OnStep) -> None:
        self.points = self.measure()


@dataclass(eq=False)
class Loading(Errand):
    """Changes the checkpoint. `switch` raises ValueError if it cannot be loaded."""

    barrier: ClassVar[bool] = True
    switch: Callable[[Path, str], None]
    checkpoint: CheckpointInfo

    def run(self, pipeline: Generator, on_step: OnStep) -> None:
        self.switch(self.checkpoint.path, self.checkpoint.name)
