"""Read candidates by id or by request, without loading a whole table into memory."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from prefkit.errors import StoreError
from prefkit.paths import read_regular
from prefkit.store.latest import locate, located
from prefkit.store.run import Store, candidate_of
from prefkit.store.seal import open_sealed
from prefkit.store.table import read_part
from prefkit.types import Candidate

PARTS_IN_MEMORY = 4
OPEN_PARTS = 32  # number of parts (files) that `by_request` keeps open
STEP_BYTES = 4 * 2**20  # bytes that a Cursor reads at a time


def run_of(pairs: Path) -> Store | None:
    """Return the run that contains the folder `pairs`, None if `pairs` is not RUN/pairs/NAME."""
    run = pairs.resolve().parent.parent
    return Store(run) if pairs.resolve().parent.name == "pairs" and (run / "run.json").exists() else None


class CandidateReader:
    """Reads candidates by id: `reader["id"]` is a row as a dict (see types.candidate_schema)."""

    def __init__(self, store: Store, generators: Sequence[str] = ()) -> None:
        self.where: dict[str, tuple[Path, int]] = {}
        tables = [store.candidates(generator) for generator in generators or store.names("candidates")]
        for path, rows, part in located(tables, ["id"]):
            self.where |= {cid: (path, row) for row, cid in zip(rows.tolist(), part.column("id").to_pylist())}
        self._part = lru_cache(PARTS_IN_MEMORY)(read_part)

    def __contains__(self, cid: str) -> bool:
        return cid in self.where

    def __getitem__(self, cid: str) -> dict[str, Any]:
        if cid not in self.where:
            raise StoreError(f"candidate {cid} is not in the run. A file may be missing; run `prefkit generate` again.")
        path, row = self.where[cid]
        part = self._part(path)
        if part is None:
            raise StoreError(
                f"{path}, which holds candidate {cid}, is damaged and was renamed to {path.name}.damaged. Run "
                "`prefkit generate` again."
            )
        return part.slice(row, 1).to_pylist()[0]

    def image(self, cid: str) -> bytes | None:
        """Return a candidate's encoded image; None for a candidate without an image, such as a mesh.

        Raises StoreError if the candidate failed, or if its image file is missing or has changed.
        """
        row = self[cid]
        if row["image"] is not None:
            return row["image"]
        if row["path"] is None:
            if row["error"] is None and row["payload"] is not None:
                return None
            raise StoreError(f"candidate {cid} has no image{': ' + row['error'] if row['error'] else ''}.")
        try:
            data = read_regular(row["path"])
        except OSError as error:
            raise StoreError(f"the image of candidate {cid} ({row['path']}) cannot be read: {error}.") from error
        if row["sha256"] and hashlib.sha256(data).hexdigest() != row["sha256"]:
            raise StoreError(
                f"the image of candidate {cid} ({row['path']}) has changed since it was stored, so its scores may be "
                "wrong. Restore the file, or import it into a new run."
            )
        return data


def by_request(
    store: Store, generators: Sequence[str], ids: set[str], columns: Sequence[str]
) -> Iterator[list[Candidate]]:
    """Yield the candidates `ids` as one list per request, with only one request's images in memory.

    A request with a candidate in a damaged part is skipped, because some scores depend on all its candidates.
    """
    requests = {r.request_id: r for r in store.requests()}
    wanted = places_by_request(store, generators, ids)
    unread = Counter(path for positions in wanted.values() for path, _ in positions)
    cursors: dict[Path, Cursor] = {}  # the most recently used one last
    images = store.input_images()
    damaged: set[Path] = set()

    def cursor(path: Path) -> Cursor:
        cursors[path] = cursors.pop(path) if path in cursors else Cursor(path, columns)
        if len(cursors) > OPEN_PARTS:
            del cursors[next(iter(cursors))]
        return cursors[path]

    def read_row(path: Path, index: int) -> dict[str, Any] | None:
        import pyarrow as pa

        if path not in damaged:
            try:
                return cursor(path).row(index)
            except (pa.ArrowException, OSError):
                damaged.add(path)
            cursors.clear()  # closes the file
            read_part(path, columns)  # renames the part, with a warning
        return None

    for positions in wanted.values():
        rows = [read_row(path, index) for path, index in positions]
        for path, _ in positions:
            unread[path] -= 1
            if not unread[path]:
                cursors.pop(path, None)
        if all(row is not None for row in rows):
            yield [candidate_of(row, requests, images) for row in rows if row is not None]
        del rows  # so that memory never holds the images of two requests


def places_by_request(store: Store, generators: Sequence[str], ids: set[str]) -> dict[str, list[tuple[Path, int]]]:
    """Return {request id: [(part, row index) of each candidate]}."""
    latest_rows = locate([store.candidates(name) for name in generators or store.names("candidates")], ids)
    positions: dict[str, list[tuple[Path, int]]] = {}
    for number, path in enumerate(latest_rows.paths):
        rows = latest_rows.of(number)
        part = read_part(path, ["request_id"]) if len(rows) else None
        if part is not None:
            for row, request in zip(rows.tolist(), part.column("request_id").take(rows).to_pylist()):
                positions.setdefault(request, []).append((path, row))
    return positions


class Cursor:
    """Reads single rows of a part by index. Ascending indices are fast; a lower index starts again at row 0."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        # without buffer_size, the first row reads the whole column
        self.file = open_sealed(path, columns, buffer_size=1 << 20)
        meta = self.file.metadata
        size = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
        self.columns = list(columns)
        self.step = int(np.clip(STEP_BYTES * meta.num_rows // max(size, 1), 1, 1024))
        self._restart()

    def _restart(self) -> None:
        self.batches = self.file.iter_batches(self.step, columns=self.columns)
        self.first, self.batch = 0, next(self.batches)

    def row(self, index: int) -> dict[str, Any]:
        """Return row `index` as a dict. Raises OSError or ArrowException if the part is damaged."""
        if index < self.first:
            self._restart()
        while index >= self.first + len(self.batch):
            self.first += len(self.batch)
            self.batch = next(self.batches)
        return self.batch.slice(index - self.first, 1).to_pylist()[0]
