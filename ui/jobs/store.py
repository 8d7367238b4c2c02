"""The record of all jobs: one SQLite file in the output folder, and a limit to the disk that results may take.

A row is written when a job is submitted and again when it has ended, so a server that was killed leaves rows that the
next one marks as interrupted. Rows are generic: what a kind of job keeps is the business of `ui.jobs.records`.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ui.jobs.disk import Disk, alive, this_process
from ui.jobs.files import FOLDER, folder_bytes, job_folder, private_folder, remove_folder

log = logging.getLogger("ui")

VERSION = 1  # of the table; kept in the file's user_version
FOR_A_ROW = 1_000_000  # bytes, far above what a row takes
INTERRUPTED = "interrupted"
LIVE = ("waiting", "running")
_LIVE = "state IN ('waiting', 'running')"

_TABLE = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, kind TEXT NOT NULL, state TEXT NOT NULL, error TEXT NOT NULL,
    request TEXT NOT NULL, report TEXT NOT NULL, posters TEXT NOT NULL, folder TEXT NOT NULL, bytes INTEGER NOT NULL,
    submitted REAL NOT NULL, started REAL NOT NULL, ended REAL NOT NULL, server TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS jobs_of_owner ON jobs (owner, submitted);
"""


@dataclass(frozen=True)
class Record:
    """One row. request, report and posters are JSON objects; folder is a name in the output folder; times are
    `time.time()`, 0 for never; server names the process that the job belongs to."""

    id: str
    owner: str
    kind: str
    state: str
    error: str = ""
    request: dict[str, Any] | None = None
    report: dict[str, Any] | None = None
    posters: dict[str, str] | None = None
    folder: str = ""
    bytes: int = 0
    submitted: float = 0.0
    started: float = 0.0
    ended: float = 0.0
    server: str = ""


_COLUMNS = [field.name for field in fields(Record)]
_JSON = ("request", "report", "posters")


class Store:
    """All jobs of one output folder, for any thread. A fault of the file is logged and never raised.

    disk: how much all that the app writes may take; beyond it the oldest ended jobs are removed with their folders, the
        newest is kept.
    """

    def __init__(self, output_dir: Path, disk: Disk | None = None) -> None:
        self.output_dir = output_dir
        self.disk = disk or Disk(output_dir)
        self._lock = threading.RLock()
        self._server = this_process()
        self._db: sqlite3.Connection | None = None
        try:
            self._file: Path | None = private_folder(output_dir) / "jobs.sqlite"
        except OSError as error:
            log.warning("no record of jobs can be kept in %s (%s)", output_dir, error.strerror)
            self._file = None
        self._open()
        self._guard(self._take_stock)

    def write(self, record: Record) -> None:
        """Add a job, or replace what is known of it. One that has ended is measured, and may push older ones out."""
        self._guard(self._write_with_room, record)
        self._guard(self._evict)

    def read(self, job_id: str) -> Record | None:
        rows = self._guard(self._select, "id = ?", (job_id,)) or []
        return rows[0] if rows else None

    def runs(self, owner: str, limit: int = 1000) -> list[Record]:
        """The owner's jobs that have ended, newest first. Nobody owns what has no owner."""
        if not owner:
            return []
        where = f"owner = ? AND NOT {_LIVE} ORDER BY submitted DESC, rowid DESC LIMIT ?"
        return self._guard(self._select, where, (owner, limit)) or []

    def newest(self, owner: str, kind: str) -> str:
        """The id of the owner's newest job of a kind, or ""."""
        where = "owner = ? AND kind = ? ORDER BY submitted DESC, rowid DESC LIMIT 1"
        rows = self._guard(self._select, where, (owner, kind)) if owner else None
        return rows[0].id if rows else ""

    def delete(self, owner: str, job_id: str | None = None) -> list[str]:
        """Remove one ended job of the owner, or all of them, with their folders. Returns the ids removed."""
        records = [record for record in self.runs(owner, -1) if job_id in (None, record.id)]
        return [record.id for record in records if self._guard(self._remove, record)]

    def total_bytes(self) -> int:
        """All that the app keeps on the disk."""
        return (self._guard(self._total) or 0) + self.disk.beside_results()

    def close(self) -> None:
        with self._lock:
            if self._db is not None:
                self._db.close()

    # what follows runs inside `_guard`

    @property
    def _connection(self) -> sqlite3.Connection:
        assert self._db is not None  # `_guard` has opened it
        return self._db

    def _write_with_room(self, record: Record) -> None:
        """Write a row; on a full disk once more, when the oldest jobs have made room for it."""
        try:
            self._write(record)
        except sqlite3.OperationalError as error:
            if "full" not in str(error):
                raise
            self._evict(FOR_A_ROW)
            self._write(record)

    def _write(self, record: Record) -> None:
        values = {name: getattr(record, name) for name in _COLUMNS} | {"server": self._server}
        values |= {name: json.dumps(values[name] or {}) for name in _JSON}
        values["bytes"] = folder_bytes(self.output_dir, record.folder) + sum(
            len(values[name]) for name in (*_JSON, "owner", "error")
        )
        places = ", ".join(f":{name}" for name in _COLUMNS)
        with self._connection:
            self._connection.execute(f"INSERT OR REPLACE INTO jobs ({', '.join(_COLUMNS)}) VALUES ({places})", values)

    def _select(self, where: str, values: tuple = ()) -> list[Record]:
        rows = self._connection.execute(f"SELECT {', '.join(_COLUMNS)} FROM jobs WHERE {where}", values).fetchall()
        return [_record(row) for row in rows]

    def _total(self) -> int:
        return self._connection.execute(f"SELECT COALESCE(SUM(bytes), 0) FROM jobs WHERE NOT {_LIVE}").fetchone()[0]

    def _remove(self, record: Record) -> bool:
        try:
            self.disk.forget(job_folder(self.output_dir, record.folder), record.error)
            remove_folder(self.output_dir, record.folder)
        except OSError as error:
            log.warning("the folder %s could not be removed: %s", record.folder, error.strerror)
            return False
        with self._connection:
            self._connection.execute("DELETE FROM jobs WHERE id = ?", (record.id,))
        return True

    def _evict(self, least: int = 0) -> None:
        """Remove the oldest ended jobs until all that is written fits, and at least so many bytes of them; never the
        newest."""
        excess = max(least, self.disk.make_room(self._total()))
        if excess <= 0:
            return
        for record in self._select(f"NOT {_LIVE} ORDER BY ended, rowid")[:-1]:
            if self._remove(record):
                log.info("job %s made room on the disk", record.id)
                excess -= record.bytes
            if excess <= 0:
                return

    def _take_stock(self) -> None:
        """Mark what a killed server left half-finished, measure again, and take in folders that no row knows."""
        for record in self._select(_LIVE):
            if not alive(record.server):
                ended = {"state": INTERRUPTED, "ended": max(record.submitted, record.started)}
                self._write(Record(**{**record.__dict__, **ended}))
        records = self._select("TRUE")
        for record in records:
            if record.folder and job_folder(self.output_dir, record.folder) is None and record.state not in LIVE:
                self._write(record)  # deleted by hand: it takes no room any more
        known = {record.folder for record in records}
        for folder in self.output_dir.iterdir():
            if FOLDER.fullmatch(folder.name) and folder.name not in known and not folder.is_symlink():
                made = folder.stat().st_mtime
                state = "done" if (folder / "report.json").is_file() else INTERRUPTED
                job_id = folder.name.rpartition("-")[2]
                self._write(Record(job_id, "", "", state, folder=folder.name, submitted=made, ended=made))
        self._evict()

    # the file

    def _guard(self, action: Callable, *values: Any) -> Any:
        """Do something with the file. A damaged file is set aside, and the action tried once more on an empty one."""
        with self._lock:
            for attempt in range(2):
                try:
                    return action(*values)
                except (sqlite3.Error, OSError, ValueError) as error:
                    # its subclasses are a full disk, a lock held too long and the like: the file itself is sound
                    if type(error) is not sqlite3.DatabaseError or attempt:
                        log.warning("the record of jobs could not be used: %s", error)
                        return None
                    self._set_aside(str(error))
        return None

    def _open(self) -> None:
        try:
            self._db = self._connect()
        except sqlite3.OperationalError as error:
            log.warning("%s cannot be opened (%s); jobs are remembered until the server ends", self._file, error)
            self._file = None
            self._db = self._connect()
        except sqlite3.DatabaseError as error:
            self._set_aside(str(error))

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._file or ":memory:", timeout=10, check_same_thread=False)
        try:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > VERSION:
                raise sqlite3.DatabaseError(f"version {version} is from a later release, this one knows {VERSION}")
            if (said := db.execute("PRAGMA quick_check").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(said)
            columns = {row[1] for row in db.execute("PRAGMA table_info(jobs)")}
            if columns and columns != set(_COLUMNS):
                raise sqlite3.DatabaseError(f"the columns of its table are {', '.join(sorted(columns))}")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.executescript(_TABLE)
            db.execute(f"PRAGMA user_version = {VERSION}")
        except BaseException:
            db.close()
            raise
        if self._file is not None:
            os.chmod(self._file, 0o600)
        return db

    def _set_aside(self, why: str) -> None:
        assert self._file is not None  # what is in memory only is never damaged
        aside = self._file.with_name(f"jobs.damaged-{time.strftime('%Y%m%d-%H%M%S')}.sqlite")
        log.warning("the record of jobs is unusable (%s); it was moved to %s and a new one begun", why, aside)
        if self._db is not None:
            self._db.close()
        try:
            for end in ("-wal", "-shm"):
                self._file.with_name(self._file.name + end).unlink(missing_ok=True)
            os.replace(self._file, aside)
        except OSError as error:
            log.warning("%s could not be moved (%s); jobs are remembered until the server ends", self._file, error)
            self._file = None
        self._open()


def _record(row: tuple) -> Record:
    values = dict(zip(_COLUMNS, row, strict=True))
    for name in _JSON:
        try:
            values[name] = json.loads(values[name])
        except ValueError:
            values[name] = {}
    return Record(**values)
