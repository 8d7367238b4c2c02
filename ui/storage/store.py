"""Stores all jobs in an SQLite file in the output folder, and limits the disk space that results take. `Database` sees
to the file itself.

A row is written when a job is submitted and again when it has ended, so a server that was killed leaves rows that the
next one marks as interrupted. Rows are generic: `ui.jobs.records` decides what each kind of job keeps.

A disk may be slow, or the file locked by another program, for minutes. So one thread writes, its callers never wait,
and records that are not written yet are read from memory.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ui.storage.database import Database
from ui.storage.disk import Disk, alive, this_process
from ui.storage.files import FOLDER, folder_bytes, job_folder, private_folder, remove_folder

log = logging.getLogger("ui")

FOR_A_ROW = 1_000_000  # bytes, far above what a row takes
INTERRUPTED = "interrupted"
LIVE = ("waiting", "running")
_LIVE = "state IN ('waiting', 'running')"
RETRY_SECONDS = 1.0

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
    """All jobs of one output folder, for any thread. A fault of the file is logged and never raised; a record that
    could not be written is kept, and written when the file can be used again.

    disk: how much all that the app writes may take; beyond it the oldest ended jobs are removed with their folders, the
        newest is kept.
    """

    def __init__(self, output_dir: Path, disk: Disk | None = None) -> None:
        self.output_dir = output_dir
        self.disk = disk or Disk(output_dir)
        self._server = this_process()
        self._unwritten: dict[str, Record] = {}
        self._fresh = threading.Lock()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="records")  # which the interpreter's end waits for
        self._retry: threading.Timer | None = None
        try:
            file: Path | None = private_folder(output_dir) / "jobs.sqlite"
        except OSError as error:
            log.warning("no record of jobs can be kept in %s (%s)", output_dir, error.strerror)
            file = None
        self._database = Database(file, _TABLE, _COLUMNS, self._take_stock)
        self._database.open()

    def write(self, record: Record) -> None:
        """Add a job, or replace what is known of it: at once for who reads, and soon in the file. One that has ended is
        measured, and may push older ones out."""
        with self._fresh:
            self._unwritten[record.id] = record
        self._soon(self._write_out)

    def flush(self) -> None:
        """Wait until everything is in the file, or has been tried once more."""
        if (done := self._soon(self._write_out)) is not None:
            done.result()

    def read(self, job_id: str) -> Record | None:
        if (record := self._unwritten.get(job_id)) is not None:
            return record
        rows = self._look("id = ?", (job_id,))
        return rows[0] if rows else None

    def runs(self, owner: str, limit: int = 1000) -> list[Record]:
        """The owner's ended jobs, newest first. Jobs without an owner belong to nobody."""
        if not owner:
            return []
        fresh = self._fresh_of(owner)
        where = f"owner = ? AND NOT {_LIVE} ORDER BY submitted DESC, rowid DESC LIMIT ?"
        records = [record for record in fresh.values() if record.state not in LIVE]
        records += [record for record in self._look(where, (owner, limit)) if record.id not in fresh]
        records.sort(key=lambda record: record.submitted, reverse=True)
        return records if limit < 0 else records[:limit]

    def newest(self, owner: str, kind: str) -> str:
        """The id of the owner's newest job of a kind, or ""."""
        if not owner:
            return ""
        records = [record for record in self._fresh_of(owner).values() if record.kind == kind]
        records += self._look("owner = ? AND kind = ? ORDER BY submitted DESC, rowid DESC LIMIT 1", (owner, kind))
        return max(records, key=lambda record: record.submitted).id if records else ""

    def delete(self, owner: str, job_id: str | None = None) -> list[str]:
        """Remove one ended job of the owner, or all of them, with their folders. Returns the ids removed, after what
        was written before is in the file."""
        done = self._soon(self._delete, owner, job_id)
        return [] if done is None else done.result()

    def total_bytes(self) -> int:
        """All that the app keeps on the disk."""
        return (self._database.guard(self._total) or 0) + self.disk.beside_results()

    def close(self) -> None:
        """Write what is left and close the file."""
        if self._retry is not None:
            self._retry.cancel()
        self._soon(self._write_out)
        self._writer.shutdown()
        self._database.close()

    def _fresh_of(self, owner: str) -> dict[str, Record]:
        """The owner's records that are not in the file yet, newest first."""
        with self._fresh:
            return {record.id: record for record in reversed(self._unwritten.values()) if record.owner == owner}

    def _look(self, where: str, values: tuple = ()) -> list[Record]:
        """The rows of the file as it is now."""
        return self._database.read(lambda db: _select(db, where, values)) or []

    # what follows runs in the thread that writes

    def _soon(self, action: Callable, *values: Any) -> Future | None:
        try:
            return self._writer.submit(action, *values)
        except RuntimeError as error:
            log.warning("the record of jobs could not be used: %s", error)
            return None

    def _write_out(self) -> None:
        """Write what is not in the file. Where the file cannot be used, the rest waits, and is tried again."""
        with self._fresh:
            records = list(self._unwritten.values())
        for record in records:
            if not self._database.guard(self._write_with_room, record):
                self._retry = threading.Timer(RETRY_SECONDS, self._soon, (self._write_out,))
                self._retry.daemon = True
                self._retry.start()
                return
            with self._fresh:
                if self._unwritten.get(record.id) is record:
                    del self._unwritten[record.id]
            if record.state not in LIVE:
                self._database.guard(self._evict)

    def _delete(self, owner: str, job_id: str | None) -> list[str]:
        self._write_out()
        records = [record for record in self.runs(owner, -1) if job_id in (None, record.id)]
        return [record.id for record in records if self._database.guard(self._remove, record)]

    # the methods below run inside `Database.guard`

    def _write_with_room(self, record: Record) -> bool:
        """Write a row. On a full disk, try once more after the oldest jobs have made room for it."""
        try:
            return self._write(record)
        except sqlite3.OperationalError as error:
            if "full" not in str(error):
                raise
            self._evict(FOR_A_ROW)
            return self._write(record)

    def _write(self, record: Record) -> bool:
        values = {name: getattr(record, name) for name in _COLUMNS} | {"server": self._server}
        values |= {name: json.dumps(values[name] or {}) for name in _JSON}
        values["bytes"] = folder_bytes(self.output_dir, record.folder) + sum(
            len(values[name]) for name in (*_JSON, "owner", "error")
        )
        places = ", ".join(f":{name}" for name in _COLUMNS)
        try:
            with self._database.connection:
                query = f"INSERT OR REPLACE INTO jobs ({', '.join(_COLUMNS)}) VALUES ({places})"
                self._database.connection.execute(query, values)
        except (ValueError, TypeError, OverflowError) as error:  # of the record, not of the file: it would come again
            log.warning("job %s cannot be recorded: %s", record.id, error)
        return True

    def _total(self) -> int:
        query = f"SELECT COALESCE(SUM(bytes), 0) FROM jobs WHERE NOT {_LIVE}"
        return self._database.connection.execute(query).fetchone()[0]

    def _remove(self, record: Record) -> bool:
        try:
            self.disk.forget(job_folder(self.output_dir, record.folder), record.error)
            remove_folder(self.output_dir, record.folder)
        except OSError as error:
            log.warning("the folder %s could not be removed: %s", record.folder, error.strerror)
            return False
        with self._database.connection:
            self._database.connection.execute("DELETE FROM jobs WHERE id = ?", (record.id,))
        return True

    def _evict(self, least: int = 0) -> None:
        """Remove the oldest ended jobs until all that is written fits, and at least so many bytes of them; never the
        newest."""
        excess = max(least, self.disk.make_room(self._total()))
        if excess <= 0:
            return
        for record in _select(self._database.connection, f"NOT {_LIVE} ORDER BY ended, rowid")[:-1]:
            if self._remove(record):
                log.info("job %s made room on the disk", record.id)
                excess -= record.bytes
            if excess <= 0:
                return

    def _take_stock(self) -> None:
        """Mark jobs that a killed server left unfinished, measure folders again, and add folders that have no row."""
        for record in _select(self._database.connection, _LIVE):
            if not alive(record.server):
                ended = {"state": INTERRUPTED, "ended": max(record.submitted, record.started)}
                self._write(Record(**{**record.__dict__, **ended}))
        records = _select(self._database.connection, "TRUE")
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
        self._evict()


def _select(db: sqlite3.Connection, where: str, values: tuple = ()) -> list[Record]:
    rows = db.execute(f"SELECT {', '.join(_COLUMNS)} FROM jobs WHERE {where}", values).fetchall()
    return [_record(row) for row in rows]


def _record(row: tuple) -> Record:
    values = dict(zip(_COLUMNS, row, strict=True))
    for name in _JSON:
        try:
            values[name] = json.loads(values[name])
        except ValueError:
            values[name] = {}
    return Record(**values)
