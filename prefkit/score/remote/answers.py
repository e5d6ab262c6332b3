"""What remote judges answered, kept on disk by the hash of what they were asked."""

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

LINGER = 0.5  # seconds for which an answer may be kept in memory alone while others come
TABLE = (
    "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, status INTEGER, body TEXT, error TEXT, final INTEGER,"
    " tries INTEGER, time REAL, sum INTEGER)"
)
Row = tuple[str, int, "str | None", "str | None", int, int, float]  # as in TABLE, without the sum
SUFFIXES = (".sqlite", ".sqlite3", ".db")  # of files that can be meant as ours
BUSY = 60.0  # seconds to wait for another process


def default_path() -> Path:
    """$XDG_CACHE_HOME/prefkit/answers.sqlite, with ~/.cache where that is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prefkit" / "answers.sqlite"


class Answers:
    """An SQLite table, safe for several threads and processes.

    An error is kept beside its status and the number of tries. It is `final` where the question itself is at fault (HTTP
    400, 413, 414, 415, 422): such a question is not asked again. Others are asked again by the next run.

    Rows are written many at a time: a transaction for each took longer than all else between an answer and the next
    question. `get` knows what waits to be written; a kill costs what came since the last `flush`, LINGER seconds or a call.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.waiting: dict[str, Row] = {}
        self.adding, self.writing, self.reading = threading.Lock(), threading.Lock(), threading.Lock()
        self.written = time.monotonic()
        self.closed = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._check()
            self.db, self.reader = self._open(), self._open()
        except (OSError, sqlite3.Error) as error:
            raise self._broken(error) from error

    def _check(self) -> None:
        """A damaged file is set aside, with a warning: what it held is asked again."""
        if not self.path.exists():
            return
        try:
            with closing(self._open()) as db:
                found = [row[0] for row in db.execute("PRAGMA quick_check(1)")]
                if found != ["ok"]:
                    raise sqlite3.DatabaseError("; ".join(map(str, found)))
        except sqlite3.OperationalError:
            raise  # locked, a full disk, no permission
        except sqlite3.DatabaseError as error:
            if self.path.suffix not in SUFFIXES:
                raise  # some other file, named by mistake
            for rest in ("-journal", "-wal", "-shm"):
                self.path.with_name(self.path.name + rest).unlink(missing_ok=True)
            warn(
                f"{self.path} is damaged and set aside as {set_aside(self.path).name}: {error}. Its answers are asked again."
            )

    def _open(self) -> sqlite3.Connection:
        # not WAL, whose shared memory does not work on network file systems
        db = sqlite3.connect(self.path, check_same_thread=False, timeout=BUSY, isolation_level=None)
        try:
            db.execute("PRAGMA journal_mode=DELETE")
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute(TABLE)
            if "sum" not in [row[1] for row in db.execute("PRAGMA table_info(answers)")]:  # by an earlier version
                db.execute("ALTER TABLE answers ADD COLUMN sum INTEGER")
        except BaseException:
            db.close()
            raise
        return db

    def get(self, key: str) -> tuple[str | None, str | None] | None:
        """(body, error) of an answer or a final error; None where there is neither. Raises StoreError."""
        row = self.waiting.get(key)
        if row is not None:
            return (row[2], row[3]) if row[4] else None
        try:
            with self.reading:
                found = self.reader.execute(
                    "SELECT body, error, sum FROM answers WHERE key = ? AND final = 1", (key,)
                ).fetchone()
        except sqlite3.Error as error:
            raise self._broken(error) from error
        if found is None:
            return None
        body, said, wanted = found
        if wanted is not None and wanted != row_sum(key, body, said):
            warn(f"{self.path}: an answer does not match its checksum, and is asked again.")
            return None
        return body, said

    def put(self, key: str, status: int, body: str | None, error: str | None, final: bool, tries: int) -> None:
        """Raises StoreError where the file cannot be written."""
        with self.adding:
            self.waiting[key] = (key, status, body, error, int(final), tries, time.time())
        if time.monotonic() - self.written > LINGER:
            self.flush()

    def flush(self) -> None:
        """Write what waits, in one transaction. Raises StoreError."""
        with self.writing:
            with self.adding:
                rows = list(self.waiting.values())
            if not rows or self.closed:
                return
            sealed = [(*row, row_sum(row[0], row[2], row[3])) for row in rows]
            try:
                self.db.execute("BEGIN IMMEDIATE")
                self.db.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)", sealed)
                self.db.execute("COMMIT")
            except sqlite3.Error as error:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
                raise self._broken(error) from error
            self.written = time.monotonic()
            with self.adding:
                for row in rows:  # a newer row of the same key stays
                    if self.waiting.get(row[0]) is row:
                        del self.waiting[row[0]]

    def close(self) -> None:
        """Writes what waits; what comes later is not kept."""
        self.flush()
        with self.writing, self.reading:
            self.closed = True
            self.db.close()
            self.reader.close()

    def _broken(self, error: Exception) -> StoreError:
        return StoreError(f"the file of answers {self.path}: {error}. Remove it, or name another with `cache`.")


def row_sum(key: str, body: str | None, error: str | None) -> int:
    """CRC-32 of what an answer says."""
    return zlib.crc32(json.dumps([key, body, error]).encode())
