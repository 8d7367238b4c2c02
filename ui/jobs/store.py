"""Stores all jobs in an SQLite file in the output folder, and limits the disk space that results take.

A row is written when a job is submitted and again when it has ended. A killed server therefore leaves rows that the
next server marks as interrupted. Rows are generic: `ui.jobs.records` decides what each kind of job keeps.
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

import psutil

from ui.jobs.files import FOLDER, folder_bytes, job_folder, private_folder, remove_folder

log = logging.getLogger("ui")

VERSION = 1  # of the table's layout; stored in the file's user_version
DEFAULT_BUDGET = 5_000_000_000
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
    """One row.

    request, report, posters: JSON objects. folder: name of a folder in the output folder.
    Times are `time.time()`, or 0 for never. server: names the process that the job belongs to.
    """

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
    """All jobs of one output folder, for use from any thread. Faults of the file are logged and never raised.

    budget: bytes that ended jobs may take. Beyond it, the oldest are removed with their folders; the newest stays.
    """

    def __init__(self, output_dir: Path, budget: int = DEFAULT_BUDGET) -> None:
        self.output_dir = output_dir
        self.budget = budget
        self._lock = threading.RLock()
        self._server = _this_process()
        self._db: sqlite3.Connection | None = None
        try:
            self._file: Path | None = private_folder(output_dir) / "jobs.sqlite"
        except OSError as error:
            log.warning("no record of jobs can be kept in %s (%s)", output_dir, error.strerror)
            self._file = None
        self._open()
        self._guard(self._take_stock)

    def write(self, record: Record) -> None:
        """Add a job or update its row. An ended job is measured, and may push out older ones."""
        over = record.state not in LIVE
        self._guard(self._write, record)
        if over:
            self._guard(self._evict, record.id)

    def read(self, job_id: str) -> Record | None:
        rows = self._guard(self._select, "id = ?", (job_id,)) or []
        return rows[0] if rows else None

    def runs(self, owner: str, limit: int = 1000) -> list[Record]:
        """The owner's ended jobs, newest first. Jobs without an owner belong to nobody."""
        if not owner:
            return []
        where = f"owner = ? AND NOT {_LIVE} ORDER BY submitted DESC, rowid DESC LIMIT ?"
        return self._guard(self._select, where, (owner, limit)) or []

    def newest(self, owner: str, kind: str) -> str:
        """The id of the owner's newest job of this kind, or ""."""
        where = "owner = ? AND kind = ? ORDER BY submitted DESC, rowid DESC LIMIT 1"
        rows = self._guard(self._select, where, (owner, kind)) if owner else None
        return rows[0].id if rows else ""

    def delete(self, owner: str, job_id: str | None = None) -> list[str]:
        """Remove one ended job of the owner, or all of them, with their folders. Returns the removed ids."""
        records = [record for record in self.runs(owner, -1) if job_id in (None, record.id)]
        return [record.id for record in records if self._guard(self._remove, record)]

    def total_bytes(self) -> int:
        return self._guard(self._total) or 0

    def close(self) -> None:
        with self._lock:
            if self._db is not None:
                self._db.close()

    # the methods below run inside `_guard`

    @property
    def _connection(self) -> sqlite3.Connection:
        assert self._db is not None  # `_guard` has opened it
        return self._db

    def _write(self, record: Record) -> None:
        values = {name: getattr(record, name) for name in _COLUMNS} | {"server": self._server}
        values |= {name: json.dumps(values[name] or {}) for name in _JSON}
        values["bytes"] = folder_bytes(self.output_dir, record.folder) + sum(len(values[name]) for name in _JSON)
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
            remove_folder(self.output_dir, record.folder)
        except OSError as error:
            log.warning("the folder %s could not be removed: %s", record.folder, error.strerror)
            return False
        with self._connection:
            self._connection.execute("DELETE FROM jobs WHERE id = ?", (record.id,))
        return True

    def _evict(self, newest: str) -> None:
        excess = self._total() - self.budget
        if excess <= 0:
            return
        for record in self._select(f"id != ? AND NOT {_LIVE} ORDER BY ended, rowid", (newest,)):
            if self._remove(record):
                log.info("job %s made room: results took more than %s bytes", record.id, f"{self.budget:,}")
                excess -= record.bytes
            if excess <= 0:
                return

    def _take_stock(self) -> None:
        """Mark jobs that a killed server left unfinished, measure folders again, and add folders that have no row."""
        for record in self._select(_LIVE):
            if not _alive(record.server):
                ended = {"state": INTERRUPTED, "ended": max(record.submitted, record.started)}
                self._write(Record(**{**record.__dict__, **ended}))
        records = self._select("TRUE")
        for record in records:
            if record.folder and job_folder(self.output_dir, record.folder) is None and record.state not in LIVE:
                self._write(record)  # deleted by hand: it takes no space any more
        known = {record.folder for record in records}
        for folder in self.output_dir.iterdir():
            if FOLDER.fullmatch(folder.name) and folder.name not in known and not folder.is_symlink():
                made = folder.stat().st_mtime
                state = "done" if (folder / "report.json").is_file() else INTERRUPTED
                job_id = folder.name.rpartition("-")[2]
                self._write(Record(job_id, "", "", state, folder=folder.name, submitted=made, ended=made))
        self._evict("")

    # the file

    def _guard(self, action: Callable, *values: Any) -> Any:
        """Run an action on the file. A damaged file is set aside, and the action runs once more on a new one."""
        with self._lock:
            for attempt in range(2):
                try:
                    return action(*values)
                except (sqlite3.Error, OSError, ValueError) as error:
                    # its subclasses mean a full disk, a lock held too long or the like: the file itself is sound
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
        assert self._file is not None  # a database in memory is never damaged
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


def _this_process() -> str:
    process = psutil.Process()
    return f"{process.pid}:{process.create_time():.0f}"


def _alive(server: str) -> bool:
    """Whether the process that a row names is still running: another server may use the same output folder."""
    pid, _, created = server.partition(":")
    try:
        return server != _this_process() and f"{psutil.Process(int(pid)).create_time():.0f}" == created
    except (psutil.Error, ValueError):
        return False
