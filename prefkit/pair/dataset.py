"""Pairs as Parquet in the Pick-a-Pic layout: jpg_0/jpg_1 as bytes, labels without ties, scalars only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from prefkit.config import Pair
from prefkit.reader import CandidateReader
from prefkit.store import Store, write_atomic, write_json
from prefkit.types import digest

ROW_GROUP_BYTES = 64 << 20
SHARD_BYTES = 400 << 20
FIXED: list[tuple[str, pa.DataType]] = [
    ("jpg_0", pa.binary()),
    ("jpg_1", pa.binary()),
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


def pair_schema(aliases: list[str]) -> pa.Schema:
    return pa.schema(FIXED + [(f"score_{side}_{alias}", pa.float64()) for alias in aliases for side in (0, 1)])


def write_dataset(
    store: Store,
    pairs: pd.DataFrame,
    folder: Path,
    name: str,
    spec: dict[str, Any],
    counts: dict[str, Any],
    config: Pair,
) -> None:
    """SPLIT/*.parquet, README.md and spec.json under `folder`. Deterministic bytes for the same pairs."""
    aliases = list(spec["weights"])
    reader = CandidateReader(store, config.generators)
    models = {g: _model_name(store, g) for g in store.names("candidates")}
    splits: dict[str, int] = {}
    for split, part in pairs.groupby("win_split", sort=True):
        writer = ShardWriter(folder / str(split), pair_schema(aliases))
        for row in part.to_dict("records"):
            writer.put(pair_row({str(k): v for k, v in row.items()}, reader, models, aliases, config.use))
        writer.close()
        splits[str(split)] = len(part)
    counts["splits"] = splits
    write_json(folder / "spec.json", {"spec": spec, "counts": counts})
    write_atomic(folder / "README.md", card(name, splits, spec, counts, config))


def pair_row(
    row: dict[str, Any], reader: CandidateReader, models: dict[str, str], aliases: list[str], strategy: str
) -> dict[str, Any]:
    """Side 0 is the winner for half of the pairs, by a hash of the two ids."""
    flipped = int(digest("side", row["win_id"], row["lose_id"], length=8), 16) % 2
    sides = ("lose", "win") if flipped else ("win", "lose")
    found: dict[str, Any] = {key: row[key] for key in ("score_gap", "rank_gap", "p", "agreement")}
    found |= {"caption": row["win_caption"], "request_id": row["win_request_id"], "strategy": strategy}
    for i, side in enumerate(sides):
        found |= {
            f"jpg_{i}": reader.image(row[f"{side}_id"]),
            f"label_{i}": 1.0 if side == "win" else 0.0,
            f"candidate_{i}": row[f"{side}_id"],
            f"image_{i}_uid": row[f"{side}_sha256"],
            f"seed_{i}": row[f"{side}_seed"],
            f"model_{i}": models[row[f"{side}_generator"]],
        }
        found |= {f"score_{i}_{alias}": row[f"{side}_{alias}"] for alias in aliases}
    return found


class ShardWriter:
    """Parquet shards with row groups of bounded size; image bytes neither compressed nor dictionary-encoded."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        folder.mkdir(parents=True)
        self.folder, self.schema = folder, schema
        self.rows: list[dict[str, Any]] = []
        self.size = self.written = self.number = 0
        self.writer: pq.ParquetWriter | None = None

    def put(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.size += len(row["jpg_0"]) + len(row["jpg_1"])
        if self.size >= ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self.rows:
            return
        if self.writer is None:
            binary = ("jpg_0", "jpg_1")
            self.writer = pq.ParquetWriter(
                self.folder / f"part-{self.number:05d}.parquet",
                self.schema,
                compression={n: "NONE" if n in binary else "snappy" for n in self.schema.names},
                use_dictionary=[n for n in self.schema.names if n not in binary],
                write_page_index=True,
                write_page_checksum=True,
            )
        self.writer.write_table(pa.Table.from_pylist(self.rows, schema=self.schema), row_group_size=len(self.rows))
        self.written += self.size
        self.rows, self.size = [], 0
        if self.written >= SHARD_BYTES:
            self._end_shard()

    def _end_shard(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer, self.written, self.number = None, 0, self.number + 1

    def close(self) -> None:
        self._flush()
        self._end_shard()


def _model_name(store: Store, generator: str) -> str:
    spec = store.candidates(generator).spec() or {}
    return f"{generator}@{spec.get('model') or spec.get('code') or 'unknown'}"


def card(name: str, splits: dict[str, int], spec: dict[str, Any], counts: dict[str, Any], config: Pair) -> str:
    """README.md: the configs that `load_dataset` reads, and what was done, in numbers."""
    files = [{"split": split, "path": f"{split}/*.parquet"} for split in splits]
    head = yaml.safe_dump({"configs": [{"config_name": "default", "data_files": files}]}, sort_keys=False)
    scorers = "\n".join(
        f"| {alias} | {weight:g} | {spec['scorers'][alias].get('name')} {spec['scorers'][alias].get('version')} "
        f"| {spec['scorers'][alias].get('formula')} | {'higher' if spec['scorers'][alias].get('higher_is_better', True) else 'lower'} |"
        for alias, weight in spec["weights"].items()
    )
    numbers = "\n".join(f"| {key.replace('_', ' ')} | {value} |" for key, value in counts.items() if key != "splits")
    return f"""---
{head}---

# {name}

Preference pairs made with prefkit: strategy `{config.use}` {config.options or ""},
normalisation `{config.normalise}`, missing scores `{config.missing}`.

| | |
|---|---|
{numbers}

| score | weight | scorer | formula | better |
|---|---|---|---|---|
{scorers}

`jpg_0` and `jpg_1` are encoded images, `label_0` and `label_1` are 1 for the winner and 0 for the loser (no ties),
`caption` is the prompt. Which side wins is decided by a hash. `candidate_0/1` name the images' candidates,
`score_<side>_<name>` their raw scores, `score_gap` the difference of the combined score (the weighted mean of the normalised ones), `p` its logistic.
"""
