"""Disk space: one account of everything that the app writes, and the order in which it is removed.

Results and their records are the store's, which removes the oldest last of all. Before them go

* uploads, which Gradio keeps in a folder that this server has for itself: broken-off ones at once, others by age;
* videos that were put on another disk because the output folder's was full;
* damaged records that were set aside, all but the newest.

Models from the Hub lie in the Hub's own cache and are not counted.
"""

from __future__ import annotations

import filecmp
import logging
import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

from ui.storage.files import PRIVATE, private_folder

log = logging.getLogger("ui")

DEFAULT_BUDGET = 5_000_000_000
RESERVE = 500_000_000  # bytes that results leave free on their disk, or
RESERVED_SHARE = 20  # one part in so many of a small disk
SHARE = 4  # uploads may take one part in so many of the budget, and rescued videos too
IDLE_SECONDS = 3600.0  # an upload that nobody touched for so long makes room for results
UPLOADS = ".uploads"  # folder in the output folder
DAMAGED = "jobs.damaged-*"

NO_ROOM = "The server's disk is full: {free} MB are free, and an upload must leave {reserve} MB. Try again later."


class Entry(NamedTuple):
    """A file, or a folder with all that is in it. changed: `time.time()`."""

    changed: float
    size: int
    path: Path


class Disk:
    """Accounts for everything on the disk and limits it, for any thread.

    budget: bytes that everything may take.
    uploads: folder that only this server writes uploads to, None for one that is not ours to tidy.
    rescued: folder of videos that found no room in the output folder.
    """

    def __init__(
        self,
        output_dir: Path,
        budget: int = DEFAULT_BUDGET,
        uploads: Path | None = None,
        rescued: Path | None = None,
    ) -> None:
        self.budget = budget
        self._output_dir = output_dir
        self._uploads, self._rescued = uploads, rescued
        self._uploading = 0
        self._lock = threading.RLock()

    def beside_results(self) -> int:
        """Bytes of uploads, rescued videos and damaged records."""
        return sum(entry.size for where in (self._uploads, self._rescued) for entry in _entries(where)) + sum(
            entry.size for entry in self._damaged()
        )

    def make_room(self, results: int) -> int:
        """Remove what nobody misses, if `results` bytes of results do not fit beside it. Returns the bytes that are too
        many then."""
        self.tidy()
        excess = self._excess(results)
        if excess > 0:
            self._remove_oldest(self._uploads, excess, before=time.time() - IDLE_SECONDS)
            excess = self._excess(results)
        return excess

    def tidy(self) -> None:
        """Remove broken-off uploads, damaged records but the newest, and what is beyond the share of its kind."""
        limit = self.budget // SHARE
        with self._lock:
            if self._uploads is not None and not self._uploading:
                for entry in _entries(self._uploads):
                    if entry.path.is_file():  # Gradio gives a finished one a folder
                        _remove(entry.path)
            for where in (self._uploads, self._rescued):
                self._remove_oldest(where, sum(entry.size for entry in _entries(where)) - limit)
            for entry in self._damaged()[:-1]:
                _remove(entry.path)

    def refusal(self, size: int) -> str | None:
        """Why an upload of so many bytes cannot be taken, or None."""
        free, reserve = _free(self._uploads or self._output_dir)
        if free - size >= reserve:
            return None
        return NO_ROOM.format(free=f"{free / 1e6:,.0f}", reserve=f"{reserve / 1e6:,.0f}")

    @contextmanager
    def uploading(self) -> Iterator[None]:
        """While an upload comes in: what it has written is no rest of a broken-off one."""
        with self._lock:
            self._uploading += 1
        try:
            yield
        finally:
            with self._lock:
                self._uploading -= 1

    def forget(self, folder: Path | None, error: str) -> None:
        """A job is about to be removed, with its folder if it has one: its videos, and the picture that it began with,
        go from among the uploads, where the form puts them; and the rescued one that its error names."""
        for media in (*folder.glob("*.mp4"), *folder.glob("image*")) if folder is not None else ():
            for entry in _entries(self._uploads):
                copies = [entry.path] if entry.path.is_file() else list(entry.path.glob("*"))
                if any(_equal(media, copy) for copy in copies):
                    _remove(entry.path)
        for entry in _entries(self._rescued):
            if str(entry.path) in error:
                _remove(entry.path)

    def _excess(self, results: int) -> int:
        free, reserve = _free(self._output_dir)
        return max(results + self.beside_results() - self.budget, reserve - free)

    def _damaged(self) -> list[Entry]:
        return _entries(self._output_dir / PRIVATE, DAMAGED)

    def _remove_oldest(self, where: Path | None, excess: int, before: float = float("inf")) -> None:
        for entry in _entries(where) if excess > 0 else ():
            if excess <= 0 or entry.changed >= before:
                return
            if _remove(entry.path):
                log.info("%s made room on the disk", entry.path.name)
                excess -= entry.size


def own_folder(base: Path) -> Path:
    """A new folder below `base` for this server, for this user only; those of servers that have ended are removed."""
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    for folder in base.glob("server-*"):
        if not alive(folder.name.removeprefix("server-").replace("-", ":")) and not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)
    folder = base / f"server-{this_process().replace(':', '-')}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def rescue_folder(output_dir: Path) -> Path | None:
    """Where videos are put that find no room in the output folder: in the system's folder for temporary files, the same
    for every server of this output folder, so that the next one can account for what is there. None where there is no
    place for one."""
    note = output_dir / PRIVATE / "rescued"
    try:
        folder = Path(note.read_text(encoding="utf-8"))
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and folder.name.startswith("longcat-"):
            return folder
    except (OSError, ValueError):
        pass
    try:
        private_folder(output_dir)
        folder = Path(tempfile.mkdtemp(prefix="longcat-rescued-"))
        note.write_text(str(folder), encoding="utf-8")
    except OSError as error:
        log.warning("no folder for videos that find no room could be made: %s", error.strerror)
        return None
    return folder


def this_process() -> str:
    process = psutil.Process()
    return f"{process.pid}:{process.create_time():.0f}"


def alive(server: str) -> bool:
    """Whether another process of this name still runs: another server may work in the same output folder."""
    pid, _, created = server.partition(":")
    try:
        return server != this_process() and f"{psutil.Process(int(pid)).create_time():.0f}" == created
    except (psutil.Error, ValueError):
        return False


def _entries(where: Path | None, pattern: str = "*") -> list[Entry]:
    """The entries of a folder, oldest first. An entry that vanishes meanwhile is left out."""
    found = []
    for path in where.glob(pattern) if where is not None else ():
        times, size = [0.0], 0
        for file in (path, *(path.rglob("*") if path.is_dir() and not path.is_symlink() else ())):
            try:
                facts = file.lstat()
            except OSError:
                continue
            times.append(facts.st_mtime)
            size += facts.st_size if not stat.S_ISDIR(facts.st_mode) else 0
        found.append(Entry(max(times), size, path))
    return sorted(found)


def _equal(one: Path, other: Path) -> bool:
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False


def _remove(path: Path) -> bool:
    try:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    except OSError as error:
        log.warning("%s could not be removed: %s", path, error.strerror)
        return False
    return True


def _free(folder: Path) -> tuple[int, int]:
    """Bytes that are free on the folder's disk, and how many should be."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return RESERVE, RESERVE
    return usage.free, min(RESERVE, usage.total // RESERVED_SHARE)
