"""Keeps the measurements for estimates in a file of the output folder."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from pipeline.machine.whole_files import write_whole

logger = logging.getLogger("pipeline")

MOST_RUNS = 60
MOST_MACHINES = 20


class Ledger:
    """Calibration points and runs of one machine and checkpoint, as one entry of a JSON file.

    points, runs: as `pipeline.estimate.estimator` writes them, oldest first.
    A file that cannot be read or written only loses earlier measurements, so this is logged and never raised.
    """

    def __init__(self, file: Path | None, key: str) -> None:
        self._file, self._key = file, key
        self.points: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []
        self._reload()

    def replace_points(self, points: list[dict[str, Any]]) -> None:
        self._reload()
        self.points = list(points)
        self._save()

    def add_run(self, run: dict[str, Any]) -> None:
        self._reload()  # another process may have added runs
        self.runs = [*self.runs, run][-MOST_RUNS:]
        self._save()

    def _read(self) -> dict[str, Any]:
        if self._file is None:
            return {}
        try:
            content = json.loads(self._file.read_text(encoding="utf-8"))
            return content if isinstance(content, dict) else {}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            logger.warning("earlier measurements in %s cannot be read: %s", self._file, error)
            return {}

    def _reload(self) -> None:
        if self._file is None:
            return
        entry = self._read().get(self._key)
        if isinstance(entry, dict) and all(isinstance(entry.get(name), list) for name in ("points", "runs")):
            self.points, self.runs = entry["points"], entry["runs"]

    def _save(self) -> None:
        if self._file is None:
            return
        content = self._read()
        content.pop(self._key, None)  # moved to the end, so that the first entry is always the least recently used
        content[self._key] = {"points": self.points, "runs": self.runs}
        content = dict(list(content.items())[-MOST_MACHINES:])
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._file, json.dumps(content, indent=1))
        except OSError as error:
            logger.warning("measurements cannot be kept in %s: %s", self._file, error)
