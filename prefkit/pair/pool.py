"""What there is to pair: candidates and their scores as arrays, texts kept aside and read where pairs are written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from prefkit.config import Pair
from prefkit.errors import NotYet
from prefkit.output import shell_quoted
from prefkit.store import Store
from prefkit.store.latest import located

COLUMNS = ["id", "request_id", "index", "seed", "sha256", "error"]
#: how the error of an image begins that the pipeline's safety checker blanked
FLAGGED = "safety checker"


@dataclass(frozen=True)
class Pool:
    """frame: row (into ids and sha256), request (into requests), generator, index, seed, and a column per score.

    Sorted by request, then by a hash of the candidate's id: what strategies do with equal scores follows this order, and
    a tie must not be decided by the index or the generator. requests: request_id, prompt, split. flagged: number of
    candidates that a safety checker blanked.
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
        """Less the candidates marked in out [N] bool."""
        return replace(self, frame=self.frame[~out]) if out.any() else self

    def where(self, ids: list[str]) -> np.ndarray:
        """[N] bool: the candidates with one of these ids."""
        if not ids:
            return np.zeros(len(self.frame), bool)
        found = pc.is_in(self.ids, value_set=pa.array(ids, pa.large_string())).to_numpy(zero_copy_only=False)
        return found[self.frame.row.to_numpy()]


def read_pool(store: Store, config: Pair, limit: int | None = None) -> Pool:
    """All candidates with an image. Raises UsageError where there are none, or a generator that is not there."""
    there = store.names("candidates")
    unknown = [name for name in config.generators if name not in there]
    if unknown:
        names = ", ".join(there) or "none"
        raise NotYet(f"pair: no candidates of {', '.join(unknown)}; there are those of {names}.", "generate", unknown)
    generators = list(config.generators or there)
    if not generators:
        text = f"there are no candidates in {store.folder}: run `prefkit generate {shell_quoted(store.folder)}` first."
        raise NotYet(text, "generate")
    requests = read_requests(store)
    names = requests["request_id"].cast(pa.large_string()).combine_chunks()
    tables, frames, flagged, start = [], [], 0, 0
    for path, _, part in located([store.candidates(name) for name in generators], COLUMNS):
        if part["error"].null_count < len(part):
            flagged += pc.sum(pc.fill_null(pc.starts_with(part["error"], FLAGGED), False)).as_py() or 0
            part = part.filter(pc.is_null(part["error"]))
        large = [part[name].cast(pa.large_string()) for name in ("id", "request_id", "sha256")]
        frames.append(
            pd.DataFrame(
                {
                    "row": np.arange(start, start + len(part)),
                    "generator": np.full(len(part), generators.index(path.parent.name), np.int16),
                    "index": part["index"].to_numpy(),
                    "seed": part["seed"].to_numpy(),
                    "hash": hashed(large[0]),
                }
            )
        )
        tables.append(large)
        start += len(part)
    ids, asked, sha256 = (
        pa.chunked_array([c for t in tables for c in t[i].chunks], pa.large_string()) for i in range(3)
    )
    del tables
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["row", "generator", "index", "seed", "hash"], dtype=int)  # fmt: skip
    # all parts at once: every call makes a hash table of all requests
    codes = pc.fill_null(pc.index_in(asked, value_set=names), -1).to_numpy()
    frame.insert(1, "request", codes.astype(np.int32))
    frame = _in_order(frame[frame.request.to_numpy() >= 0] if (frame.request < 0).any() else frame)
    if limit is not None:
        frame = frame[frame.request.isin(pd.unique(frame.request)[:limit])]
    return Pool(frame, ids, sha256, requests, generators, flagged)


def read_requests(store: Store) -> pa.Table:
    path = store.folder / "requests.parquet"
    if not path.exists():
        text = f"there are no requests in {store.folder}: run `prefkit generate {shell_quoted(store.folder)}` first."
        raise NotYet(text, "generate")
    return store.request_table(["request_id", "prompt", "split"])


def hashed(ids: pa.ChunkedArray) -> np.ndarray:
    """[N] int64 in [0, 2^32): equal for equal ids, without a pattern otherwise."""
    found = pd.util.hash_array(ids.to_numpy().astype(object), categorize=False)
    return (found >> np.uint64(32)).astype(np.int64)


def _in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Sorted by request and hash."""
    key = (frame["request"].to_numpy().astype(np.int64) << 32) + frame["hash"].to_numpy().astype(np.int64)
    order = np.argsort(key, kind="stable")
    return frame.drop(columns="hash").iloc[order].reset_index(drop=True)


def add_scores(store: Store, pool: Pool, aliases: list[str]) -> tuple[Pool, dict[str, Any]]:
    """The pool with a float64 column per alias (NaN = missing or failed), and the aliases' specs."""
    frame, specs = pool.frame.copy(deep=False), {}
    for alias in aliases:
        table = store.scores(alias)
        specs[alias] = table.spec() or {}
        parts = table.read(["id", "value"])
        column = _joined(pool.ids, parts["id"].cast(pa.large_string()), parts["value"].to_numpy())
        frame[alias] = column[frame.row.to_numpy()]
    return replace(pool, frame=frame), specs


def _joined(ids: pa.ChunkedArray, scored: pa.ChunkedArray, values: np.ndarray) -> np.ndarray:
    """values of `scored` in the order of `ids`; the later one where an id was scored twice."""
    if len(ids) == len(scored) and pc.all(pc.equal(ids, scored)).as_py():  # scored as generated
        return values.astype(np.float64)
    found = np.full(len(ids), np.nan)
    where = pc.fill_null(pc.index_in(scored, value_set=ids.combine_chunks()), -1).to_numpy()
    found[where[where >= 0]] = values[where >= 0]
    return found
