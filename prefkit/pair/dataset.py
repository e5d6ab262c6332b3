"""Write pairs as Parquet in the layout of Pick-a-Pic: image bytes in jpg_0 and jpg_1, labels, and other scalars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from prefkit.images import shown
from prefkit.pair.pool import Pool
from prefkit.store.parquet import ROW_GROUP_BYTES, Shards

ROWS = 1 << 17  # pairs that are converted at a time
REPEATED = ("caption", "request_id", "strategy", "aspect", "model_0", "model_1")
TEXT, NUMBER = pa.string(), pa.float64()
IMAGES = [("jpg_0", pa.binary()), ("jpg_1", pa.binary())]
FIXED: list[tuple[str, pa.DataType]] = [
    *IMAGES,
    *((name, NUMBER) for name in ("label_0", "label_1")),
    *((name, TEXT) for name in ("caption", "request_id", "candidate_0", "candidate_1", "image_0_uid", "image_1_uid")),
    *((name, pa.int64()) for name in ("seed_0", "seed_1")),
    *((name, TEXT) for name in ("model_0", "model_1")),
    ("score_gap", NUMBER),
    ("rank_gap", pa.int32()),
    *((name, NUMBER) for name in ("p", "agreement")),
    ("strategy", TEXT),
]
MEMBERS = {"candidate": TEXT, "image_uid": TEXT, "rank": pa.int32(), "value": NUMBER}  # list columns in lists/
LISTS = pa.schema(
    [("caption", TEXT), ("request_id", TEXT), *((name, pa.list_(kind)) for name, kind in MEMBERS.items())]
)


def pair_schema(aliases: list[str], images: bool = True, aspect: bool = False) -> pa.Schema:
    """Return the Arrow schema of a pair set. aliases: names of scores; images: True includes the image columns; aspect:
    True includes the column with the aspect in which the pair differs."""
    fixed = (FIXED if images else FIXED[len(IMAGES) :]) + [("aspect", TEXT)] * aspect
    return pa.schema(fixed + [(f"score_{side}_{alias}", NUMBER) for alias in aliases for side in (0, 1)])


class PairTable:
    """Converts pairs to Arrow tables and files. The pairs' columns win and lose are indices into the pool's frame."""

    def __init__(self, pool: Pool, models: list[str], aliases: list[str], strategy: str) -> None:
        self.pool, self.aliases = pool, aliases
        self.models = pa.array(models)
        self.names = pa.array([strategy, *(f"{strategy}:{alias}" for alias in aliases)])

    def splits(self, pairs: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
        """Yield (split name, pairs in the split), sorted by name."""
        encoded = self.pool.requests["split"].combine_chunks().dictionary_encode()
        codes = encoded.indices.to_numpy()[self.pool.frame.request.to_numpy()[pairs.win.to_numpy()]]
        names = encoded.dictionary.to_pylist()
        for name in sorted(names):
            mask = codes == names.index(name)
            if mask.any():
                yield name, pairs[mask]

    def scalars(self, pairs: pd.DataFrame, tie: bool = False) -> pa.Table:
        """Return all columns except images. A hash of both ids decides whether the winner is on side 0 or 1."""
        frame = self.pool.frame
        win, lose = pairs.win.to_numpy(), pairs.lose.to_numpy()
        flipped = _flipped(*(self.pool.ids.take(pa.array(frame.row.to_numpy()[side])) for side in (win, lose)))
        request = pa.array(frame.request.to_numpy()[win])
        columns: dict[str, Any] = {
            "caption": self.pool.requests["prompt"].take(request),
            "request_id": self.pool.requests["request_id"].take(request),
            "strategy": self.names.take(pa.array(pairs["by"].to_numpy() + 1)),
        }
        columns |= {key: pairs[key].to_numpy() for key in ("score_gap", "rank_gap", "p", "agreement")}
        for i, side in enumerate((np.where(flipped, lose, win), np.where(flipped, win, lose))):
            row = pa.array(frame.row.to_numpy()[side])
            columns[f"label_{i}"] = np.full(len(pairs), 0.5) if tie else (flipped == bool(i)).astype(np.float64)
            columns[f"candidate_{i}"] = self.pool.ids.take(row)
            columns[f"image_{i}_uid"] = self.pool.sha256.take(row)
            columns[f"seed_{i}"] = frame.seed.to_numpy()[side]
            columns[f"model_{i}"] = self.models.take(pa.array(frame.generator.to_numpy()[side]))
            for alias in self.aliases:
                columns[f"score_{i}_{alias}"] = pa.array(frame[alias].to_numpy()[side], from_pandas=True)
        if "aspect" in pairs:
            columns["aspect"] = pa.array(pairs.aspect, TEXT)
        schema = pair_schema(self.aliases, images=False, aspect="aspect" in pairs)
        return pa.table({name: columns[name] for name in schema.names}).cast(schema)

    def write(
        self, pairs: pd.DataFrame, folder: Path, schema: pa.Schema, write: Callable[[pd.DataFrame, Shards], None]
    ) -> dict[str, int]:
        """Write SPLIT/part-*.parquet by calling `write` for ROWS pairs at a time. Returns {split: number of rows}."""
        splits = {}
        for split, part in self.splits(pairs):
            with Shards(folder / split, schema, repeated=None if schema is LISTS else REPEATED) as shards:
                for start in range(0, len(part), ROWS):
                    write(part.iloc[start : start + ROWS], shards)
            splits[split] = len(part)
        return splits


def _flipped(win: pa.ChunkedArray, lose: pa.ChunkedArray) -> np.ndarray:
    a, b = (pd.util.hash_array(ids.to_numpy().astype(object, copy=False), categorize=False) for ids in (win, lose))
    mixed = (a + (b << np.uint64(1))) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed >> np.uint64(63)).astype(bool)


def write_pairs(
    table: PairTable, pairs: pd.DataFrame, folder: Path, image: Callable[[str], bytes | None] | None
) -> dict[str, int]:
    """Write SPLIT/part-*.parquet and return {split: number of rows}.

    image: a function from candidate id to encoded image (None: no image); if it is None, the image columns are null.
    """
    schema = pair_schema(table.aliases, aspect="aspect" in pairs)
    return table.write(pairs, folder, schema, lambda part, shards: _embed(table.scalars(part), shards, image))


def _embed(scalars: pa.Table, shards: Shards, image: Callable[[str], bytes | None] | None) -> None:
    """Write rows with the images as scorers saw them. Holds only the images of one row group in memory."""
    if image is None:
        nulls = pa.nulls(len(scalars), pa.binary())
        shards.write(scalars.add_column(0, "jpg_0", nulls).add_column(1, "jpg_1", nulls))
        return
    names = [scalars[f"candidate_{i}"].to_pylist() for i in (0, 1)]
    group: tuple[list[bytes | None], list[bytes | None]] = ([], [])
    size = start = 0
    for row, sides in enumerate(zip(*names)):
        for column, name in zip(group, sides):
            encoded = image(name)
            column.append(None if encoded is None else shown(encoded))
            size += len(encoded or b"")
        if size >= ROW_GROUP_BYTES or row == len(scalars) - 1:
            part = scalars.slice(start, row + 1 - start)
            for i, column in enumerate(group):
                part = part.add_column(i, f"jpg_{i}", pa.array(column, pa.binary()))
            shards.write(part)
            group, size, start = ([], []), 0, row + 1


def write_ties(table: PairTable, ties: pd.DataFrame, folder: Path) -> None:
    """Write ties to ties/SPLIT/part-*.parquet, with both labels 1/2 and without images."""
    schema = pair_schema(table.aliases, images=False, aspect="aspect" in ties)
    table.write(ties, folder / "ties", schema, lambda part, shards: shards.write(table.scalars(part, tie=True)))


def write_lists(table: PairTable, value: np.ndarray, folder: Path) -> int:
    """Write ranked lists to lists/SPLIT/part-*.parquet, and return their number.

    A list holds a request's candidates, best first; equal values get equal ranks. A request whose candidates all have
    the same value gets no list.
    """
    frame = table.pool.frame
    order = np.lexsort((-value, frame.request.to_numpy()))
    order = order[~np.isnan(value[order])]
    request = frame.request.to_numpy()[order]
    first = np.flatnonzero(np.r_[True, request[1:] != request[:-1]]) if len(order) else np.zeros(0, np.int64)
    ends = np.r_[first[1:], len(order)].astype(np.int64)
    differ = value[order[ends - 1]] < value[order[first]] if len(first) else np.zeros(0, bool)
    lists = pd.DataFrame({"win": order[first], "start": first, "end": ends})[differ]
    table.write(
        lists, folder / "lists", LISTS, lambda part, shards: shards.write(_list_rows(table, value, order, part))
    )
    return len(lists)


def _list_rows(table: PairTable, value: np.ndarray, order: np.ndarray, part: pd.DataFrame) -> pa.Table:
    frame, pool = table.pool.frame, table.pool
    start, size = part.start.to_numpy(), (part.end - part.start).to_numpy()
    offsets = np.r_[0, np.cumsum(size)]
    index = np.arange(offsets[-1]) - np.repeat(offsets[:-1], size)  # position within the list
    members = order[index + np.repeat(start, size)]
    new = (index == 0) | np.r_[True, np.diff(value[members]) != 0]
    rank = np.maximum.accumulate(np.where(new, np.arange(len(members)), 0)) - np.repeat(offsets[:-1], size)
    rows = pa.array(frame.row.to_numpy()[members])
    request = pa.array(frame.request.to_numpy()[part.win.to_numpy()])

    columns = {
        "candidate": pool.ids.take(rows).combine_chunks(),
        "image_uid": pool.sha256.take(rows).combine_chunks(),
        "rank": pa.array(rank),
        "value": pa.array(value[members]),
    }
    starts = pa.array(offsets, pa.int32())
    texts = [pool.requests[name].take(request) for name in ("prompt", "request_id")]
    lists = [pa.ListArray.from_arrays(starts, columns[name].cast(kind)) for name, kind in MEMBERS.items()]
    return pa.table([*texts, *lists], schema=LISTS)
