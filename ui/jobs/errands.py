"""Errands: the worker's own tasks for an engine, between the jobs of people."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pipeline import CheckpointInfo
from pipeline.engine.engine import Engine
from ui.jobs.job import Job


@dataclass(eq=False)
class Errand(Job):
    errand: ClassVar[bool] = True
    _over: threading.Event = field(default_factory=threading.Event, init=False)

    def perform(self, engine: Engine) -> None:
        """Do it on the engine whose turn it is, in that engine's thread."""
        raise NotImplementedError

    def wait(self) -> None:
        self._over.wait()

    def end(self, *how: Any) -> None:
        super().end(*how)
        self._over.set()


@dataclass(eq=False)
class Calibration(Errand):
    """Measures the machine. `points` holds the measurements."""

    points: list[dict[str, Any]] = field(default_factory=list, init=False)

    def perform(self, engine: Engine) -> None:
        self.points = engine.calibrate()


@dataclass(eq=False)
class Loading(Errand):
    """Changes the checkpoint of all engines. `switch` raises ValueError if it cannot be loaded."""

    barrier: ClassVar[bool] = True
    switch: Callable[[Engine, Path, str], None]
    checkpoint: CheckpointInfo

    def perform(self, engine: Engine) -> None:
        self.switch(engine, self.checkpoint.path, self.checkpoint.name)
