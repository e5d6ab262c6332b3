"""The candidate pool: the candidates of a run with their scores, as arrays."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from prefkit.config import Pair
from prefkit.errors import NotYet, UsageError
from prefkit.output import shell_quoted
from prefkit.pair.block import Aspects
from prefkit.store import Store
from prefkit.store.latest import located
from prefkit.store.table import Table

TEXT = pa.large_string()
SCHEMA = pa.schema(
    [*((name, TEXT) for name in ("id", "request_id", "sha256", "error")), ("index", pa.int64()), ("seed", pa.int64())]
)
#: how the `error` of a candidate starts whose image the pipeline's safety checker blanked
FLAGGED = "safety checker"


@dataclass(frozen=True)
class Pool:
    """The candidates of a run, one per row of `frame`, sorted by request, then by a hash of the candidate's id.

    Strategies break ties by this order, so that no index or generator is preferred. Columns of frame: row (index into
    ids and sha256), request (index into requests), generator (index into generators), index, seed, and one per score.
    requests: table of request_id, prompt and split. flagged: number of candidates that a safety checker blanked.
    """

    frame: pd.DataFrame
    ids: pa.ChunkedArray
    sha256: pa.ChunkedArray
    requests: pa.Table
    generators: list[str]
    flagged: int = 0

    def __len__(self) -> int:
        return len(self.frame)

    def without(self, out: np.ndarray) -> Pool:
        """Return the pool without the candidates whose entry in `out` [N] is True."""
        return replace(self, frame=self.frame[~out]) if out.any() else self

    def where(self, ids: list[str]) -> np.ndarray:
        """Return a mask [N] of the candidates whose id is in `ids`."""
        if not ids:
            return np.zeros(len(self.frame), bool)
        matches = pc.is_in(self.ids, value_set=pa.array(ids, TEXT)).to_numpy(zero_copy_only=False)
        return matches[self.frame.row.to_numpy()]


def read_pool(store: Store, config: Pair, limit: int | None = None) -> Pool:
    """Read the candidates that did not fail, of at most `limit` requests. Raises NotYet if a generator has none."""
    known = store.names("candidates")
    unknown = [name for name in config.generators if name not in known]
    if unknown:
        names = ", ".join(known) or "none"
        text = f"pair: no candidates from {', '.join(unknown)}; generators with candidates: {names}."
        raise NotYet(text, "generate", unknown)
    generators = list(config.generators or known)
    if not generators:
        raise NotYet(_missing(store, "candidates"), "generate")
    if not (store.folder / "requests.parquet").exists():
        raise NotYet(_missing(store, "requests"), "generate")
    requests = store.request_table(["request_id", "prompt", "split"])
    names = requests["request_id"].cast(TEXT).combine_chunks()
    parts, numbers, hashes = [SCHEMA.empty_table()], [np.zeros(0, np.int16)], []
    with ThreadPoolExecutor(1) as other:  # parts are decoded without the GIL, so ids are hashed meanwhile
        for path, _, part in located([store.candidates(name) for name in generators], SCHEMA.names):
            parts.append(part.select(SCHEMA.names).cast(SCHEMA))
            numbers.append(np.full(len(part), generators.index(path.parent.name), np.int16))
            hashes.append(other.submit(hashed, parts[-1]["id"]))
        found = {
            "generator": np.concatenate(numbers),
            "hash": np.r_[np.zeros(0, np.int64), *(h.result() for h in hashes)],
        }
    table = pa.concat_tables(parts)
    for name, values in found.items():
        table = table.append_column(name, pa.array(values))
    flagged = pc.sum(pc.fill_null(pc.starts_with(table["error"], FLAGGED), False)).as_py() or 0
    if table["error"].null_count < len(table):
        table = table.filter(pc.is_null(table["error"]))
    columns = {name: table[name].to_numpy() for name in ("generator", "index", "seed")}
    frame = pd.DataFrame({"row": np.arange(len(table)), **columns})
    codes = _places(table["request_id"].combine_chunks(), names)
    frame.insert(1, "request", codes.astype(np.int32))
    order = np.argsort((codes.astype(np.int64) << 32) + table["hash"].to_numpy(), kind="stable")
    frame = frame.iloc[order[codes[order] >= 0]].reset_index(drop=True)
    if limit is not None:
        frame = frame[frame.request.isin(pd.unique(frame.request)[:limit])]
    ids, sha256 = (pa.chunked_array([table[name].combine_chunks()]) for name in ("id", "sha256"))  # `take` is faster
    return Pool(frame, ids, sha256, requests, generators, flagged)


def _places(texts: pa.Array, names: pa.Array) -> np.ndarray:
    """Return the index in `names` of each text [N], -1 for others. Looks a text up once if it is repeated in a row."""
    starts = np.ones(len(texts), bool)
    starts[1:] = pc.not_equal(texts[1:], texts[:-1]).to_numpy(zero_copy_only=False)
    found = pc.fill_null(pc.index_in(texts.filter(pa.array(starts)), value_set=names), -1).to_numpy()
    return found[np.cumsum(starts) - 1]


def _missing(store: Store, name: str) -> str:
    return f"{store.folder} has no {name}: run `prefkit generate {shell_quoted(store.folder)}` first."


def hashed(ids: pa.ChunkedArray) -> np.ndarray:
    """Return the hashes of the ids, [N] int64 in [0, 2^32)."""
    hashes = pd.util.hash_array(ids.to_numpy().astype(object, copy=False), categorize=False)
    return (hashes >> np.uint64(32)).astype(np.int64)


def add_scores(store: Store, pool: Pool, aliases: list[str]) -> tuple[Pool, dict[str, Any]]:
    """Return (the pool with a float64 column per score, {score name: spec}). NaN = missing or failed."""
    frame, tables = pool.frame.copy(deep=False), [store.scores(alias) for alias in aliases]

    def column(table: Table) -> np.ndarray:
        parts = table.read(["id", "value"])
        return _joined(pool.ids, parts["id"].cast(TEXT), parts["value"].to_numpy())[frame.row.to_numpy()]

    with ThreadPoolExecutor(2) as both:  # reading and joining run without the GIL
        frame = frame.assign(**dict(zip(aliases, both.map(column, tables))))
    return replace(pool, frame=frame), {alias: table.spec() or {} for alias, table in zip(aliases, tables)}


def _joined(ids: pa.ChunkedArray, scored: pa.ChunkedArray, values: np.ndarray) -> np.ndarray:
    """Return the scores in the order of `ids`. scored: the id of each value; if an id occurs twice, the later wins."""
    if len(ids) == len(scored) and pc.all(pc.equal(ids, scored)).as_py():  # the usual case
        return values.astype(np.float64)
    result = np.full(len(ids), np.nan)
    rows = pc.fill_null(pc.index_in(scored, value_set=ids.combine_chunks()), -1).to_numpy()
    result[rows[rows >= 0]] = values[rows >= 0]
    return result


def read_aspects(store: Store, pool: Pool, alias: str) -> Aspects:
    """Read the aspects of the pool's candidates in the score `alias`. Raises UsageError if it has none."""
    stored = store.scores(alias).frame(["id", "aspects"]).dropna(subset="aspects").set_index("id").aspects
    ids = pool.ids.take(pa.array(pool.frame.row.to_numpy())).to_pylist()
    parsed = [json.loads(text) if isinstance(text, str) else {} for text in stored.reindex(ids)]
    columns: dict[int, dict[str, int]] = {}  # request -> aspect -> column
    for request, aspects in zip(pool.frame.request.tolist(), parsed):
        for name in aspects:
            columns.setdefault(request, {}).setdefault(name, len(columns[request]))
    if not columns:
        raise UsageError(
            f"pair: {alias} has no aspects. Use a score that has, such as geneval, or mllm with `aspects`."
        )
    names = sorted({name for own in columns.values() for name in own})
    index = {name: number for number, name in enumerate(names)}
    shape = len(ids), max(len(own) for own in columns.values())
    values, code = np.full(shape, np.nan), np.full(shape, -1, np.int32)
    for i, (request, aspects) in enumerate(zip(pool.frame.request.tolist(), parsed)):
        for name, column in columns.get(request, {}).items():
            values[i, column], code[i, column] = aspects.get(name, np.nan), index[name]
    higher = (store.scores(alias).spec() or {}).get("higher_is_better", True)
    return Aspects(values if higher else -values, code, tuple(names))
