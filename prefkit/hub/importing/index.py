"""What a run holds already, as an index on disk: so that memory does not grow with the import.

It is a cache of the tables, made anew at every start, and never the truth.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import suppress
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


class Known:
    """Ids of requests, candidates, comparisons and scores; and the next index within a request."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            path.unlink()
        self.path = path
        self.base = sqlite3.connect(path, isolation_level=None)
        self.base.execute("PRAGMA journal_mode=OFF")
        self.base.execute("PRAGMA synchronous=OFF")
        self.base.execute("BEGIN")
        self.base.execute("CREATE TABLE request (id TEXT PRIMARY KEY, split TEXT) WITHOUT ROWID")
        self.base.execute("CREATE TABLE count (id TEXT PRIMARY KEY, candidates INTEGER) WITHOUT ROWID")
        self.base.execute("CREATE TABLE candidate (id TEXT PRIMARY KEY, request TEXT) WITHOUT ROWID")
        self.base.execute("CREATE TABLE stored (kind TEXT, id TEXT, PRIMARY KEY (kind, id)) WITHOUT ROWID")

    def fill(self, store: Store, name: str) -> None:
        for table in map(store.candidates, store.names("candidates")):
            for part in table.batches(["id", "request_id"]):
                for cid, request in zip(part.column("id").to_pylist(), part.column("request_id").to_pylist()):
                    self.candidate(cid, request)
        for row in stored_requests(store, ["request_id", "split"]):
            self.request(row["request_id"], row["split"])
        for path in stage_requests(store, name).parts():
            part = read_part(path, ["request_id", "split"])
            rows = part.to_pylist() if part is not None else []
            if not sum(self.request(row["request_id"], row["split"]) for row in rows):
                keep_merged(store, name, path)  # just before a kill

    def fill_table(self, kind: str, table: Table) -> None:
        for part in table.batches(["id"]):
            for cid in part.column("id").to_pylist():
                self.row(kind, cid)

    def request(self, rid: str, split: str) -> bool:
        """True where it is new."""
        return self.base.execute("INSERT OR IGNORE INTO request VALUES (?, ?)", (rid, split)).rowcount == 1

    def split(self, rid: str) -> str | None:
        """The one that the request is in."""
        found = self.base.execute("SELECT split FROM request WHERE id = ?", (rid,)).fetchone()
        return found[0] if found else None

    def candidate(self, cid: str, request: str) -> bool:
        new = self.base.execute("INSERT OR IGNORE INTO candidate VALUES (?, ?)", (cid, request)).rowcount == 1
        if new:
            self.base.execute("INSERT INTO count VALUES (?, 1) ON CONFLICT (id) DO UPDATE SET candidates = candidates + 1",
                              (request,))  # fmt: skip
        return new

    def owner(self, cid: str) -> str | None:
        """The request that a candidate answers."""
        found = self.base.execute("SELECT request FROM candidate WHERE id = ?", (cid,)).fetchone()
        return found[0] if found else None

    def index(self, request: str) -> int:
        """How many candidates a request has."""
        found = self.base.execute("SELECT candidates FROM count WHERE id = ?", (request,)).fetchone()
        return found[0] if found else 0

    def row(self, kind: str, rid: str) -> bool:
        return self.base.execute("INSERT OR IGNORE INTO stored VALUES (?, ?)", (kind, rid)).rowcount == 1

    def close(self) -> None:
        self.base.close()
        self.path.unlink(missing_ok=True)


def stored_requests(store: Store, columns: list[str] | None = None) -> Iterator[dict[str, str]]:
    """requests.parquet row by row, without holding it."""
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
    """Requests of an unfinished import; they join requests.parquet together, when it ends."""
    return Table(store.folder / ".imports" / f"{name}.requests", request_schema())


def merged_requests(store: Store, name: str) -> Table:
    """The requests that the import brought and that are in requests.parquet."""
    return Table(store.folder / ".imports" / f"{name}.merged", request_schema())


def keep_merged(store: Store, name: str, part: Path) -> None:
    folder = merged_requests(store, name).folder
    folder.mkdir(parents=True, exist_ok=True)
    os.replace(part, folder / part.name)


def merge_requests(store: Store, name: str) -> None:
    """requests.parquet = what it held and what is staged; then the staged parts become merged ones."""
    staged = stage_requests(store, name)
    parts = staged.parts()
    if parts:
        rewrite_requests(store, staged)
    for part in parts:
        if part.exists():  # a damaged one was set aside
            keep_merged(store, name, part)


def rewrite_requests(store: Store, more: Table | None = None, without: Collection[str] = ()) -> None:
    """requests.parquet without some ids, and with the rows of `more`; streamed, and replaced at once."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    path = store.folder / "requests.parquet"

    def save(temporary: Path) -> None:
        with pq.ParquetWriter(temporary, request_schema(), write_page_checksum=True) as writer:
            for batch in _request_batches(store):
                gone = pc.is_in(batch.column("request_id"), pa.array(list(without), pa.string()))
                writer.write_batch(batch.filter(pc.invert(gone)) if without else batch)
            for part in more.batches() if more is not None else ():
                writer.write_table(part)
        seal(temporary)

    write_whole(path, save)
