"""The index of a run's ids during an import, and the import's requests before they are added to requests.parquet."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from prefkit.store import Store
from prefkit.store.files import write_whole
from prefkit.store.run import damaged_requests
from prefkit.store.seal import open_sealed, seal
from prefkit.store.table import Table, read_part
from prefkit.types import request_schema

if TYPE_CHECKING:
    import pyarrow as pa

TABLES = """
PRAGMA journal_mode=OFF;
PRAGMA synchronous=OFF;
BEGIN;
CREATE TABLE request (id TEXT PRIMARY KEY, split TEXT) WITHOUT ROWID;
CREATE TABLE count (id TEXT PRIMARY KEY, candidates INTEGER) WITHOUT ROWID;
CREATE TABLE candidate (id TEXT PRIMARY KEY, request TEXT) WITHOUT ROWID;
CREATE TABLE stored (kind TEXT, id TEXT, PRIMARY KEY (kind, id)) WITHOUT ROWID;
"""
COUNT = "INSERT INTO count VALUES (?, 1) ON CONFLICT (id) DO UPDATE SET candidates = candidates + 1"


class RunIndex:
    """Ids of a run's requests, candidates, comparisons and scores, in SQLite, so that memory use stays constant.

    The index is a cache of the tables and is rebuilt at every start. Methods that add an id return True if it is new.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self.path = path
        self.base = sqlite3.connect(path, isolation_level=None)
        self.base.executescript(TABLES)

    def fill(self, store: Store, name: str) -> None:
        """Read the run's candidates and requests, and the staged requests of the import `name`."""
        for table in map(store.candidates, store.names("candidates")):
            for part in table.batches(["id", "request_id"]):
                for cid, request in zip(part.column("id").to_pylist(), part.column("request_id").to_pylist()):
                    self.add_candidate(cid, request)
        for row in stored_requests(store, ["request_id", "split"]):
            self.add_request(row["request_id"], row["split"])
        for path in stage_requests(store, name).parts():
            part = read_part(path, ["request_id", "split"])
            rows = part.to_pylist() if part is not None else []
            if not sum(self.add_request(row["request_id"], row["split"]) for row in rows):
                keep_merged(store, name, path)  # the import was killed between merge and move

    def add_table(self, kind: str, table: Table) -> None:
        for part in table.batches(["id"]):
            for rid in part.column("id").to_pylist():
                self.add_row(kind, rid)

    def add_request(self, rid: str, split: str) -> bool:
        return self._insert("request", rid, split)

    def add_candidate(self, cid: str, request: str) -> bool:
        new = self._insert("candidate", cid, request)
        if new:
            self.base.execute(COUNT, (request,))
        return new

    def add_row(self, kind: str, rid: str) -> bool:
        return self._insert("stored", kind, rid)

    def split_of(self, rid: str) -> str | None:
        return self._select("SELECT split FROM request WHERE id = ?", rid)

    def request_of(self, cid: str) -> str | None:
        """Return the id of the request that a candidate answers, or None."""
        return self._select("SELECT request FROM candidate WHERE id = ?", cid)

    def next_index(self, request: str) -> int:
        """Return the index for a new candidate of a request: the number of candidates that the request has."""
        return self._select("SELECT candidates FROM count WHERE id = ?", request) or 0

    def _insert(self, table: str, *values: str) -> bool:
        return self.base.execute(f"INSERT OR IGNORE INTO {table} VALUES (?, ?)", values).rowcount == 1

    def _select(self, query: str, rid: str):
        row = self.base.execute(query, (rid,)).fetchone()
        return row[0] if row else None

    def close(self) -> None:
        self.base.close()
        self.path.unlink(missing_ok=True)


def stored_requests(store: Store, columns: list[str] | None = None) -> Iterator[dict[str, str]]:
    """Stream the rows of requests.parquet."""
    for batch in _request_batches(store, columns):
        yield from batch.to_pylist()


def _request_batches(store: Store, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    path = store.folder / "requests.parquet"
    if path.exists():
        try:
            with open_sealed(path, columns) as file:
                yield from file.iter_batches(4096, columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise damaged_requests(path, error) from error


def stage_requests(store: Store, name: str) -> Table:
    """Return the table of an unfinished import's requests, which are added to requests.parquet when it ends."""
    return Table(store.folder / ".imports" / f"{name}.requests", request_schema())


def merged_requests(store: Store, name: str) -> Table:
    """Return the table of the requests that the import `name` added to requests.parquet."""
    return Table(store.folder / ".imports" / f"{name}.merged", request_schema())


def keep_merged(store: Store, name: str, part: Path) -> None:
    """Move a file from the table of staged requests to the table of merged requests."""
    folder = merged_requests(store, name).folder
    folder.mkdir(parents=True, exist_ok=True)
    os.replace(part, folder / part.name)


def merge_requests(store: Store, name: str) -> None:
    """Add the staged requests to requests.parquet, then move their files to the table of merged requests."""
    staged = stage_requests(store, name)
    parts = staged.parts()
    if parts:
        rewrite_requests(store, staged)
    for part in parts:
        if part.exists():  # reading renames a damaged part
            keep_merged(store, name, part)


def rewrite_requests(store: Store, more: Table | None = None, without: Collection[str] = ()) -> None:
    """Rewrite requests.parquet without the ids in `without` and with the rows of `more`, streamed and atomically."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    def save(temporary: Path) -> None:
        with pq.ParquetWriter(temporary, request_schema(), write_page_checksum=True) as writer:
            for batch in _request_batches(store):
                removed = pc.is_in(batch.column("request_id"), pa.array(list(without), pa.string()))
                writer.write_batch(batch.filter(pc.invert(removed)) if without else batch)
            for part in more.batches() if more is not None else ():
                writer.write_table(part)
        seal(temporary)

    write_whole(store.folder / "requests.parquet", save)
