"""Pairs as Parquet in the Pick-a-Pic layout: jpg_0/jpg_1 as bytes, labels without ties, scalars only."""

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

ROWS = 1 << 17  # pairs whose scalars are in memory at a time
REPEATED = ("caption", "request_id", "strategy", "model_0", "model_1")
IMAGES = [("jpg_0", pa.binary()), ("jpg_1", pa.binary())]
FIXED: list[tuple[str, pa.DataType]] = [
    *IMAGES,
    ("label_0", pa.float64()),
    ("label_1", pa.float64()),
    ("caption", pa.string()),
    ("request_id", pa.string()),
    ("candidate_0", pa.string()),
    ("candidate_1", pa.string()),
    ("image_0_uid", pa.string()),
    ("image_1_uid", pa.string()),
    ("seed_0", pa.int64()),
    ("seed_1", pa.int64()),
    ("model_0", pa.string()),
    ("model_1", pa.string()),
    ("score_gap", pa.float64()),
    ("rank_gap", pa.int32()),
    ("p", pa.float64()),
    ("agreement", pa.float64()),
    ("strategy", pa.string()),
]
LISTS = pa.schema(
    [
        ("caption", pa.string()),
        ("request_id", pa.string()),
        ("candidate", pa.list_(pa.string())),
        ("image_uid", pa.list_(pa.string())),
        ("rank", pa.list_(pa.int32())),
        ("value", pa.list_(pa.float64())),
    ]
)


def pair_schema(aliases: list[str]) -> pa.Schema:
    return pa.schema(FIXED + [(f"score_{side}_{alias}", pa.float64()) for alias in aliases for side in (0, 1)])


class PairTable:
    """Pairs as Arrow tables: `pairs` has win and lose (places in the pool's frame) and what is said of each pair."""

    def __init__(self, pool: Pool, models: list[str], aliases: list[str], strategy: str) -> None:
        self.pool, self.aliases = pool, aliases
        self.models = pa.array(models)
        self.names = pa.array([strategy, *(f"{strategy}:{alias}" for alias in aliases)])

    def splits(self, pairs: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
        """Splits in alphabetical order, the pairs of each in order."""
        encoded = self.pool.requests["split"].combine_chunks().dictionary_encode()
        codes = encoded.indices.to_numpy()[self.pool.frame.request.to_numpy()[pairs.win.to_numpy()]]
        names = encoded.dictionary.to_pylist()
        for name in sorted(names):
            mine = codes == names.index(name)
            if mine.any():
                yield name, pairs[mine] if not mine.all() else pairs

    def scalars(self, pairs: pd.DataFrame, tie: bool = False) -> pa.Table:
        """All columns but the images. Side 0 is the winner for half of the pairs, by a hash of the two ids."""
        frame = self.pool.frame
        rows = {side: pairs[side].to_numpy() for side in ("win", "lose")}
        ids = {s: self.pool.ids.take(pa.array(frame.row.to_numpy()[r])) for s, r in rows.items()}
        flipped = _flipped(ids["win"], ids["lose"])
        sides = (np.where(flipped, rows["lose"], rows["win"]), np.where(flipped, rows["win"], rows["lose"]))
        request = pa.array(frame.request.to_numpy()[rows["win"]])
        found: dict[str, Any] = {
            "caption": self.pool.requests["prompt"].take(request),
            "request_id": self.pool.requests["request_id"].take(request),
            "strategy": self.names.take(pa.array(pairs["by"].to_numpy() + 1)),
        }
        found |= {key: pairs[key].to_numpy() for key in ("score_gap", "rank_gap", "p", "agreement")}
        for i, side in enumerate(sides):
            place = pa.array(frame.row.to_numpy()[side])
            found[f"label_{i}"] = np.full(len(pairs), 0.5) if tie else (flipped == bool(i)).astype(np.float64)
            found[f"candidate_{i}"] = self.pool.ids.take(place)
            found[f"image_{i}_uid"] = self.pool.sha256.take(place)
            found[f"seed_{i}"] = frame.seed.to_numpy()[side]
            found[f"model_{i}"] = self.models.take(pa.array(frame.generator.to_numpy()[side]))
            for alias in self.aliases:
                found[f"score_{i}_{alias}"] = pa.array(frame[alias].to_numpy()[side], from_pandas=True)
        schema = pa.schema([f for f in pair_schema(self.aliases) if not f.name.startswith("jpg_")])
        return pa.table({name: found[name] for name in schema.names}).cast(schema)


def _flipped(win: pa.ChunkedArray, lose: pa.ChunkedArray) -> np.ndarray:
    a, b = (pd.util.hash_array(np.array(ids.to_pylist(), object), categorize=False) for ids in (win, lose))
    mixed = (a + (b << np.uint64(1))) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed >> np.uint64(63)).astype(bool)


def write_pairs(table: PairTable, pairs: pd.DataFrame, folder: Path, image: Callable[[str], bytes] | None) -> dict[str, int]:  # fmt: skip
    """SPLIT/part-*.parquet; image gives a candidate's bytes, None leaves the image columns null. Rows per split.

    Deterministic bytes for the same pairs; memory does not grow with their number.
    """
    splits = {}
    for split, part in table.splits(pairs):
        with Shards(folder / split, pair_schema(table.aliases), repeated=REPEATED) as shards:
            for start in range(0, len(part), ROWS):
                _embed(table.scalars(part.iloc[start : start + ROWS]), shards, image)
        splits[split] = len(part)
    return splits


def _embed(scalars: pa.Table, shards: Shards, image: Callable[[str], bytes] | None) -> None:
    """Write rows with their images, which are fetched as they are written, and hold what scorers saw of them."""
    if image is None:
        nulls = pa.nulls(len(scalars), pa.binary())
        shards.write(scalars.add_column(0, "jpg_0", nulls).add_column(1, "jpg_1", nulls))
        return
    names = [scalars[f"candidate_{i}"].to_pylist() for i in (0, 1)]
    held: tuple[list[bytes], list[bytes]] = ([], [])
    size = start = 0
    for row, sides in enumerate(zip(*names)):
        for kept, name in zip(held, sides):
            kept.append(shown(image(name)))
            size += len(kept[-1])
        if size >= ROW_GROUP_BYTES or row == len(scalars) - 1:
            part = scalars.slice(start, row + 1 - start)
            for i, kept in enumerate(held):
                part = part.add_column(i, f"jpg_{i}", pa.array(kept, pa.binary()))
            shards.write(part)
            held, size, start = ([], []), 0, row + 1


def write_ties(table: PairTable, ties: pd.DataFrame, folder: Path) -> int:
    """ties/SPLIT/part-*.parquet: pairs within the tie threshold, labels 1/2, ids and scalars without images."""
    schema = pa.schema([f for f in pair_schema(table.aliases) if not f.name.startswith("jpg_")])
    for split, part in table.splits(ties):
        with Shards(folder / "ties" / split, schema, repeated=REPEATED) as shards:
            for start in range(0, len(part), ROWS):
                shards.write(table.scalars(part.iloc[start : start + ROWS], tie=True))
    return len(ties)


def write_lists(table: PairTable, value: np.ndarray, folder: Path) -> int:
    """lists/SPLIT/part-*.parquet: per request its candidates best first, equal values sharing a rank."""
    frame = table.pool.frame
    order = np.lexsort((-value, frame.request.to_numpy()))
    order = order[~np.isnan(value[order])]
    request = frame.request.to_numpy()[order]
    first = np.flatnonzero(np.r_[True, request[1:] != request[:-1]]) if len(order) else np.zeros(0, np.int64)
    ends = np.r_[first[1:], len(order)].astype(np.int64)
    differ = value[order[ends - 1]] < value[order[first]] if len(first) else np.zeros(0, bool)
    lists = pd.DataFrame({"win": order[first], "start": first, "end": ends})[differ]
    for split, part in table.splits(lists):
        with Shards(folder / "lists" / split, LISTS) as shards:
            for begin in range(0, len(part), ROWS):
                shards.write(_list_rows(table, value, order, part.iloc[begin : begin + ROWS]))
    return len(lists)


def _list_rows(table: PairTable, value: np.ndarray, order: np.ndarray, part: pd.DataFrame) -> pa.Table:
    frame, pool = table.pool.frame, table.pool
    start, size = part.start.to_numpy(), (part.end - part.start).to_numpy()
    offsets = np.r_[0, np.cumsum(size)]
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - start, size)
    members, inside = order[place], np.arange(offsets[-1]) - np.repeat(offsets[:-1], size)
    new = (inside == 0) | np.r_[True, np.diff(value[members]) != 0]
    rank = np.maximum.accumulate(np.where(new, np.arange(len(members)), 0)) - np.repeat(offsets[:-1], size)
    rows = pa.array(frame.row.to_numpy()[members])
    request = pa.array(frame.request.to_numpy()[part.win.to_numpy()])

    def listed(values: Any, kind: pa.DataType) -> pa.Array:
        flat = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else pa.array(values)
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat.cast(kind))

    return pa.table(
        {
            "caption": pool.requests["prompt"].take(request),
            "request_id": pool.requests["request_id"].take(request),
            "candidate": listed(pool.ids.take(rows), pa.string()),
            "image_uid": listed(pool.sha256.take(rows), pa.string()),
            "rank": listed(rank, pa.int32()),
            "value": listed(value[members], pa.float64()),
        }
    )
