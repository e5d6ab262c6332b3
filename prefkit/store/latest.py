"""Find the current rows of tables. If an id was stored several times (after a retry), only its last row is current."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prefkit.store.table import Table, read_part

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Located:
    """Positions of the N current rows.

    paths: all readable, non-empty parts (files), table by table, oldest first. part [N]: index in `paths` of each row's
    part, ascending. row [N]: index of each row in its part, ascending within a part.
    """

    paths: list[Path]
    part: np.ndarray
    row: np.ndarray

    def of(self, number: int) -> np.ndarray:
        """Return the indices of the current rows in part `number`."""
        start, end = np.searchsorted(self.part, [number, number + 1])
        return self.row[start:end]


def locate(tables: Sequence[Table], ids: set[str] | None = None) -> Located:
    """Find the current rows (only those with an id in `ids`, if given). Reads two small columns of every part once.

    In each table, the last row of an id counts. If several tables contain the id (two generators with equal settings),
    only one of these rows is current: the last that did not fail or, if all failed, the last.
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
                errors = part.column("error").is_valid().to_numpy() if len(names) > 1 else np.zeros(len(part), bool)
                failed.append(errors)
    if not paths:
        return Located([], np.zeros(0, np.int64), np.zeros(0, np.int64))
    all_ids = pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string())
    positions = _latest_positions(all_ids, np.concatenate(numbers), np.concatenate(failed), ids)
    starts = np.cumsum([0, *map(len, columns)])
    part = np.searchsorted(starts, positions, side="right") - 1
    return Located(paths, part, positions - starts[part])


def _latest_positions(
    all_ids: pa.ChunkedArray, table: np.ndarray, failed: np.ndarray, ids: set[str] | None
) -> np.ndarray:
    """Return the ascending positions of the current rows in `all_ids`. table [N]: number of each row's table."""
    import pyarrow as pa
    import pyarrow.compute as pc

    positions = np.arange(len(all_ids))
    if ids is not None:
        positions = positions[pc.is_in(all_ids, value_set=pa.array(list(ids), pa.string())).to_numpy()]
        all_ids = all_ids.take(pa.array(positions))
    whole = all_ids.combine_chunks()
    if _differ(whole):  # the usual case
        return positions
    codes = whole.dictionary_encode().indices.to_numpy().astype(np.int64)
    tables = int(table[-1]) + 1
    keep = _last(codes * tables + table[positions])  # the last row of each id in each table
    if tables > 1:  # then one row per id, if possible one that did not fail
        order = keep[np.lexsort((keep, ~failed[positions][keep]))]
        keep = np.sort(order[_last(codes[order])])
    return positions[keep]


def _differ(ids: pa.Array) -> bool:
    """True if the ids [N] have equal lengths and different hashes, so that no id occurs twice; False if that is unknown.

    An exact answer takes several times as long.
    """
    start, size = ids.offset, len(ids)
    if not size or ids.null_count:
        return not size
    ends = np.frombuffer(ids.buffers()[1], np.int32)[start : start + size + 1]
    width = int(ends[1] - ends[0])
    if not width or (np.diff(ends) != width).any():
        return False
    letters = np.frombuffer(ids.buffers()[2], np.uint8)[ends[0] : ends[-1]].reshape(size, width)
    hashes = np.zeros(size, np.uint64)
    for first in range(0, width, 8):
        word = np.zeros((size, 8), np.uint8)
        word[:, : width - first] = letters[:, first : first + 8]
        hashes = (hashes ^ (hashes >> np.uint64(29)) ^ word.view(np.uint64)[:, 0]) * np.uint64(0x9E3779B97F4A7C15)
    hashes.sort()
    return bool((hashes[1:] != hashes[:-1]).all())


def _last(keys: np.ndarray) -> np.ndarray:
    """Return the ascending positions of each key's last occurrence."""
    _, first = np.unique(keys[::-1], return_index=True)
    return np.sort(len(keys) - 1 - first)


def latest(tables: Sequence[Table], columns: Sequence[str], ids: set[str] | None = None) -> Iterator[pa.Table]:
    """Yield the current rows, part by part, oldest first. Parts without current rows are skipped."""
    return (part for _, _, part in located(tables, columns, ids))


def located(
    tables: Sequence[Table], columns: Sequence[str], ids: set[str] | None = None
) -> Iterator[tuple[Path, np.ndarray, pa.Table]]:
    """Yield the current rows as (path of the part, indices of the rows in the part, rows)."""
    positions = locate(tables, ids)
    for number, path in enumerate(positions.paths):
        rows = positions.of(number)
        part = read_part(path, columns) if len(rows) else None
        if part is not None:
            yield path, rows, part if len(rows) == len(part) else part.take(rows)
