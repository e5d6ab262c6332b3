"""The rows of tables that count: of an id that was stored several times, the last one.

A retry appends a row; the failed one before it stays in its part. Everything that reads parts row by row asks here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefkit.store.seal import open_sealed
from prefkit.store.table import Table, read_part

if TYPE_CHECKING:
    import pyarrow as pa

STEP_BYTES = 4 * 2**20  # read from a part at once by a Cursor


@dataclass(frozen=True)
class Located:
    """paths: the parts that hold a row that counts, oldest first. part [N]: number of the row's part in `paths`, rising;
    row [N]: its number there, rising within a part."""

    paths: list[Path]
    part: np.ndarray
    row: np.ndarray

    def of(self, number: int) -> np.ndarray:
        """The rows of one part that count."""
        start, end = np.searchsorted(self.part, [number, number + 1])
        return self.row[start:end]


def locate(tables: Sequence[Table], ids: set[str] | None = None) -> Located:
    """Where the rows that count are. ids: only these. Reads two small columns of every part once.

    The last row of an id in its table holds. An id of several tables (two generators with equal settings) is taken from
    the last table where it did not fail.
    """
    import pyarrow as pa

    paths, columns, numbers, failed = [], [], [], []
    for number, table in enumerate(tables):
        names = ["id", "error"] if "error" in table.schema.names else ["id"]
        for path in table.parts():
            part = read_part(path, names)
            if part is not None and len(part):
                paths.append(path)
                columns.append(part.column("id").cast(pa.string()))
                numbers.append(np.full(len(part), number))
                failed.append(
                    part.column("error").is_valid().to_numpy() if len(names) > 1 else np.zeros(len(part), bool)
                )
    if not paths:
        return Located([], np.zeros(0, np.int64), np.zeros(0, np.int64))
    sizes = [len(column) for column in columns]
    every = pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string())
    places = _counting(every, np.concatenate(numbers), np.concatenate(failed), ids)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    part = np.searchsorted(starts, places, side="right") - 1
    return Located(paths, part, places - starts[part])


def _counting(every: pa.ChunkedArray, table: np.ndarray, failed: np.ndarray, ids: set[str] | None) -> np.ndarray:
    """Places in `every`, rising, of the rows that count."""
    import pyarrow as pa
    import pyarrow.compute as pc

    places = np.arange(len(every))
    if ids is not None:
        places = places[pc.is_in(every, value_set=pa.array(list(ids), pa.string())).to_numpy()]
        every = every.take(pa.array(places))
    codes = every.combine_chunks().dictionary_encode().indices.to_numpy()
    several = int(table[-1]) > 0
    # the last of its table and id, then the last of its id that did not fail
    keep = _last(codes.astype(np.int64) * (int(table[-1]) + 1) + table[places]) if several else _last(codes)
    if several:
        order = keep[np.lexsort((keep, ~failed[places][keep]))]
        keep = np.sort(order[_last(codes[order])])
    return places[keep]


def _last(keys: np.ndarray) -> np.ndarray:
    """Rising places of the last occurrence of every key."""
    _, first = np.unique(keys[::-1], return_index=True)
    return np.sort(len(keys) - 1 - first)


def latest(tables: Sequence[Table], columns: Sequence[str], ids: set[str] | None = None) -> Iterator[pa.Table]:
    """The rows that count, part by part, oldest first; a part without any is not read."""
    return (part for _, _, part in located(tables, columns, ids))


def located(
    tables: Sequence[Table], columns: Sequence[str], ids: set[str] | None = None
) -> Iterator[tuple[Path, np.ndarray, pa.Table]]:
    """The same with each part's path, and the numbers of the rows in it."""
    found = locate(tables, ids)
    for number, path in enumerate(found.paths):
        rows = found.of(number)
        part = read_part(path, columns) if len(rows) else None
        if part is not None:
            yield path, rows, part if len(rows) == len(part) else part.take(rows)


class Cursor:
    """Rows of one part by their numbers, a few MB at a time. Forward is cheap; back, it begins anew."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        # buffer_size: without it, the whole column is read at the first row
        self.file = open_sealed(path, columns, buffer_size=1 << 20)
        meta = self.file.metadata
        size = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
        self.columns = list(columns)
        self.step = int(np.clip(STEP_BYTES * meta.num_rows // max(size, 1), 1, 1024))
        self._begin()

    def _begin(self) -> None:
        self.batches = self.file.iter_batches(self.step, columns=self.columns)
        self.first, self.batch = 0, next(self.batches)

    def row(self, number: int) -> dict[str, Any]:
        """Raises OSError or ArrowException where the part is damaged."""
        if number < self.first:
            self._begin()
        while number >= self.first + len(self.batch):
            self.first += len(self.batch)
            self.batch = next(self.batches)
        return self.batch.slice(number - self.first, 1).to_pylist()[0]

    def close(self) -> None:
        self.file.close()
