"""Answers of remote judges, stored on disk by the hash of the question."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
import zlib
from contextlib import closing
from pathlib import Path

from prefkit.errors import StoreError
from prefkit.output import warn
from prefkit.store.files import set_aside

LINGER = 0.5  # seconds that an answer may stay in memory before it is written
TABLE = (
    "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, status INTEGER, body TEXT, error TEXT, final INTEGER,"
    " tries INTEGER, time REAL, sum INTEGER)"
)
Row = tuple[str, int, "str | None", "str | None", int, int, float]  # a row of TABLE without the checksum
SUFFIXES = (".sqlite", ".sqlite3", ".db")  # a damaged file with another suffix is not renamed
BUSY = 60.0  # seconds to wait for a lock that another process holds


def default_path() -> Path:
    """Return $XDG_CACHE_HOME/prefkit/answers.sqlite, or ~/.cache/prefkit/answers.sqlite if the variable is unset."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prefkit" / "answers.sqlite"


class Answers:
    """SQLite table of answers, shared by threads and processes. Methods raise StoreError if the file cannot be used.

    Errors are stored with their HTTP status and the number of tries. An error is `final` if the question is invalid
    (HTTP 400, 413, 414, 415, 422): it is not asked again. Questions with other errors are asked again in the next run.

    Rows are written in batches, since a transaction per answer would be slow. `get` also returns rows that are not
    written yet. A killed process loses the rows since the last `flush`; Client.map flushes at its end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.waiting: dict[str, Row] = {}
        self.adding, self.using = threading.Lock(), threading.Lock()  # locks for `waiting` and for `db`
        self.written = time.monotonic()
        self.closed = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._check()
            self.db = self._open()
        except (OSError, sqlite3.Error) as error:
            raise self._error(error) from error

    def _check(self) -> None:
        """Rename a damaged file, with a warning."""
        if not self.path.exists():
            return
        try:
            with closing(self._open()) as db:
                problems = [row[0] for row in db.execute("PRAGMA quick_check(1)")]
                if problems != ["ok"]:
                    raise sqlite3.DatabaseError("; ".join(map(str, problems)))
        except sqlite3.OperationalError:
            raise  # locked, a full disk, no permission
        except sqlite3.DatabaseError as error:
            if self.path.suffix not in SUFFIXES:
                raise
            for suffix in ("-journal", "-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            name = set_aside(self.path).name
            warn(f"{self.path} is damaged and was renamed to {name}: {error}. Its questions are asked again.")

    def _open(self) -> sqlite3.Connection:
        # not WAL, whose shared memory does not work on network file systems
        db = sqlite3.connect(self.path, check_same_thread=False, timeout=BUSY, isolation_level=None)
        try:
            db.execute("PRAGMA journal_mode=DELETE")
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute(TABLE)
            if "sum" not in [row[1] for row in db.execute("PRAGMA table_info(answers)")]:  # an older file
                db.execute("ALTER TABLE answers ADD COLUMN sum INTEGER")
        except BaseException:
            db.close()
            raise
        return db

    def get(self, key: str) -> tuple[str | None, str | None] | None:
        """Return (body, error) if an answer or a final error is stored, else None."""
        row = self.waiting.get(key)
        if row is not None:
            return (row[2], row[3]) if row[4] else None
        query = "SELECT body, error, sum FROM answers WHERE key = ? AND final = 1"
        try:
            with self.using:
                stored = self.db.execute(query, (key,)).fetchone()
        except sqlite3.Error as error:
            raise self._error(error) from error
        if stored is None:
            return None
        body, message, checksum = stored
        if checksum is not None and checksum != row_sum(key, body, message):
            warn(f"{self.path}: an answer does not match its checksum; its question is asked again.")
            return None
        return body, message

    def put(self, key: str, status: int, body: str | None, error: str | None, final: bool, tries: int) -> None:
        with self.adding:
            self.waiting[key] = (key, status, body, error, int(final), tries, time.time())
        if time.monotonic() - self.written > LINGER:
            self.flush()

    def flush(self) -> None:
        """Write all waiting rows in one transaction."""
        with self.using:
            with self.adding:
                rows = list(self.waiting.values())
            if not rows or self.closed:
                return
            try:
                self.db.execute("BEGIN IMMEDIATE")
                self.db.executemany(
                    "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    [(*row, row_sum(row[0], row[2], row[3])) for row in rows],
                )
                self.db.execute("COMMIT")
            except sqlite3.Error as error:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
                raise self._error(error) from error
            self.written = time.monotonic()
            with self.adding:
                for row in rows:  # keep a row with this key that was added meanwhile
                    if self.waiting.get(row[0]) is row:
                        del self.waiting[row[0]]

    def close(self) -> None:
        """Write all waiting rows and close the file; later answers are not stored."""
        self.flush()
        with self.using:
            self.closed = True
            self.db.close()

    def _error(self, error: Exception) -> StoreError:
        return StoreError(f"the answer file {self.path} is unusable: {error}. Remove it, or name another in `cache`.")


def row_sum(key: str, body: str | None, error: str | None) -> int:
    """Return the CRC-32 of a row's contents."""
    return zlib.crc32(json.dumps([key, body, error]).encode())
