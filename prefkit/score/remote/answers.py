"""What remote judges answered, kept on disk by the hash of what they were asked."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from pathlib import Path

TABLE = (
    "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, status INTEGER, body TEXT, error TEXT, final INTEGER,"
    " tries INTEGER, time REAL)"
)


def default_path() -> Path:
    """$XDG_CACHE_HOME/prefkit/answers.sqlite, with ~/.cache where that is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prefkit" / "answers.sqlite"


class Answers:
    """An SQLite table, safe for several threads and processes.

    An error is kept beside its status and the number of tries. It is `final` where the question itself is at fault (HTTP
    400, 413, 422): such a question is not asked again. Others are asked again by the next run.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lock = threading.Lock()
        self.db = sqlite3.connect(path, check_same_thread=False, timeout=60, isolation_level=None)
        with self.lock:
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.execute("PRAGMA synchronous=NORMAL")
            self.db.execute(TABLE)

    def get(self, key: str) -> tuple[str | None, str | None] | None:
        """(body, error) of an answer or a final error; None where there is neither."""
        with self.lock:
            row = self.db.execute("SELECT body, error FROM answers WHERE key = ? AND final = 1", (key,)).fetchone()
        return row

    def put(self, key: str, status: int, body: str | None, error: str | None, final: bool, tries: int) -> None:
        with self.lock:
            self.db.execute(
                "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)",
                (key, status, body, error, int(final), tries, time.time()),
            )

    def close(self) -> None:
        with self.lock:
            self.db.close()
