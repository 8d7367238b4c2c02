"""The file in which an output folder keeps the measurements that its estimates rest on."""

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
    """Calibration points and runs of one machine and checkpoint, one entry among others in a JSON file.

    Attributes: points, runs: as `pipeline.estimate.estimator` writes them, oldest first. A file that cannot be read or
    written costs only the memory of earlier measurements, so it is noted in the log and never raised.
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
        self._reload()  # another process may have added some
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
        content.pop(self._key, None)  # put last, so that the first is the one not used for longest
        content[self._key] = {"points": self.points, "runs": self.runs}
        content = dict(list(content.items())[-MOST_MACHINES:])
        try:
            write_whole(self._file, json.dumps(content, indent=1))
        except OSError as error:
            logger.warning("measurements cannot be kept in %s: %s", self._file, error)
