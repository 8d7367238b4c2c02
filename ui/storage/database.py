"""The SQLite file of all jobs: opened, read beside writes, and set aside when it is damaged. Faults are logged.

A file that another program has locked is tried again with the next use. One that cannot be used at all gives way to a
database in memory, so that the page works on until its server ends.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

log = logging.getLogger("ui")

VERSION = 1  # of the table; kept in the file's user_version
WRITE_SECONDS, READ_SECONDS = 10.0, 0.5  # how long a locked file is waited for

T = TypeVar("T")


class Database:
    """One file with the table `jobs`, for any thread.

    path: None for a database in memory.
    table: SQL that makes the table where there is none. columns: the names of its columns.
    opened: runs inside `guard` after every opening.
    """

    def __init__(self, path: Path | None, table: str, columns: Iterable[str], opened: Callable[[], None]) -> None:
        self._path = path
        self._table = table
        self._columns = set(columns)
        self._opened = opened
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None  # of its own, so that it never waits for a write
        self._reading = threading.Lock()

    @property
    def connection(self) -> sqlite3.Connection:
        """For actions inside `guard`."""
        assert self._db is not None  # `guard` has opened it
        return self._db

    def read(self, action: Callable[[sqlite3.Connection], T]) -> T | None:
        """The action's result on the file as it is now; None if it cannot be read."""
        if self._path is None:
            return self.guard(lambda: action(self.connection))
        with self._reading:
            if self._reader is None:  # locked since the start
                return None
            try:
                return action(self._reader)
            except sqlite3.Error as error:
                if type(error) is not sqlite3.DatabaseError:
                    log.warning("the record of jobs could not be read: %s", error)
                    return None
        return self.guard(lambda: action(self.connection))  # which sees to damage

    def close(self) -> None:
        with self._lock, self._reading:
            for db in (self._db, self._reader):
                if db is not None:
                    db.close()

    def guard(self, action: Callable, *values: Any) -> Any:
        """Run an action on the file. A damaged file is set aside, and the action runs once more on a new one."""
        with self._lock:
            if self._db is None and not self._begin():
                return None
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

    def open(self) -> bool:
        """Open the file and see what is in it. False while another program has it locked."""
        with self._lock:
            return self._begin()

    def _begin(self) -> bool:
        self._open()
        if self._db is None:
            return False
        self.guard(self._opened)
        return True

    def _open(self) -> None:
        try:
            self._db = self._connect()
            with self._reading:
                self._reader = self._connection_to(self._path, READ_SECONDS) if self._path is not None else None
        except sqlite3.OperationalError as error:
            if self._path is not None and error.sqlite_errorname in ("SQLITE_BUSY", "SQLITE_LOCKED"):
                log.warning("%s is in use by another program (%s); jobs are written when it is free", self._path, error)
                return
            log.warning("%s cannot be opened (%s); jobs are remembered until the server ends", self._path, error)
            self._path = None
            self._db = self._connect()
        except sqlite3.DatabaseError as error:
            self._set_aside(str(error))

    def _connect(self) -> sqlite3.Connection:
        db = self._connection_to(self._path, WRITE_SECONDS)
        try:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > VERSION:
                raise sqlite3.DatabaseError(f"version {version} is from a later release, this one knows {VERSION}")
            if (said := db.execute("PRAGMA quick_check").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(said)
            columns = {row[1] for row in db.execute("PRAGMA table_info(jobs)")}
            if columns and columns != self._columns:
                raise sqlite3.DatabaseError(f"the columns of its table are {', '.join(sorted(columns))}")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.executescript(self._table)
            db.execute(f"PRAGMA user_version = {VERSION}")
        except BaseException:
            db.close()
            raise
        if self._path is not None:
            os.chmod(self._path, 0o600)
        return db

    @staticmethod
    def _connection_to(file: Path | None, timeout: float) -> sqlite3.Connection:
        return sqlite3.connect(file or ":memory:", timeout=timeout, check_same_thread=False)

    def _set_aside(self, why: str) -> None:
        assert self._path is not None  # a database in memory is never damaged
        aside = self._path.with_name(f"jobs.damaged-{time.strftime('%Y%m%d-%H%M%S')}.sqlite")
        log.warning("the record of jobs is unusable (%s); it was moved to %s and a new one begun", why, aside)
        if self._db is not None:
            self._db.close()
            self._db = None
        try:
            for end in ("-wal", "-shm"):
                self._path.with_name(self._path.name + end).unlink(missing_ok=True)
            os.replace(self._path, aside)
        except OSError as error:
            log.warning("%s could not be moved (%s); jobs are remembered until the server ends", self._path, error)
            self._path = None
        self._open()
