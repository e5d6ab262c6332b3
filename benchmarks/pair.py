"""Time to pair ten million scored candidates, against a DuckDB statement of the same rule.

    python benchmarks/pair.py --requests 1250000 [--n 8] [--scorers 3] [--shuffled] [--folder DIR]

Builds a run of ids and scores (no images), then times, each in a separate process, `run_pair` (topk_bottomk, k 1,
centred, ids and scalars only) and DuckDB reading the same files, joining, normalising, ranking and writing the same
columns. Prints seconds, CPU seconds (DuckDB has two threads), peak resident memory, and whether both chose the same pairs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

PART = 1 << 18


def build(folder: Path, requests: int, n: int, scorers: int, shuffled: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from prefkit.store import Store
    from prefkit.store.files import write_json

    store, rng = Store.create(folder), np.random.default_rng(0)
    names = pa.array([f"{i:020x}" for i in range(requests)])
    prompts = pa.array([f"a photograph of thing number {i} on a table" for i in range(requests)])
    table = {
        "request_id": names,
        "prompt": prompts,
        "split": pa.array(["train"] * requests),
        "extra": pa.array(["{}"] * requests),
    }
    pq.write_table(pa.table(table), folder / "requests.parquet")
    total = requests * n
    for start in range(0, total, PART):
        rows = np.arange(start, min(start + PART, total))
        part = {
            "id": hexes(rows, 20),
            "request_id": names.take(pa.array(rows // n)),
            "index": pa.array(rows % n, pa.int32()),
            "seed": pa.array(rows),
            "image": pa.nulls(len(rows), pa.binary()),
            "path": pa.nulls(len(rows), pa.string()),
            "sha256": hexes(rows, 64),
            "payload": pa.nulls(len(rows), pa.binary()),
            "extra": pa.array(["{}"] * len(rows)),
            "error": pa.nulls(len(rows), pa.string()),
        }
        save(store.candidates("own").folder, start, part)
    for s in range(scorers):
        order = rng.permutation(total) if shuffled else np.arange(total)
        values = rng.normal(size=total)
        for start in range(0, total, PART):
            rows = order[start : start + PART]
            nulls = pa.nulls(len(rows), pa.string())
            part = {
                "id": hexes(rows, 20),
                "value": pa.array(values[rows]),
                "aspects": nulls,
                "text": nulls,
                "error": nulls,
            }
            save(store.scores(f"s{s}").folder, start, part)
        write_json(store.scores(f"s{s}").folder / "spec.json", {"name": f"s{s}", "higher_is_better": True})


def hexes(rows: np.ndarray, width: int):
    """Ids that look like hashes: a mixed number, in hex."""
    import pyarrow as pa

    mixed = rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    shifts = np.arange(0, 64, 4, dtype=np.uint64)
    letters = digits[((mixed[:, None] >> shifts) & np.uint64(15)).astype(np.int64)]
    letters = np.tile(letters, (1, -(-width // 16)))[:, :width]
    return pa.array(np.ascontiguousarray(letters).view(f"S{width}").ravel()).cast(pa.string())


def save(folder: Path, start: int, part: dict) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(part), folder / f"part-{start:012d}-0.parquet", use_dictionary=["request_id"])


def ours(folder: str) -> None:
    from prefkit.config import Pair, Recipe
    from prefkit.pair.run import run_pair
    from prefkit.store import Store

    pair = Pair(duplicates="exact", degenerate="keep", embed=False)
    run_pair(Store(folder), Recipe(run=folder, pair={"main": pair}), "main")


def theirs(folder: str) -> None:
    """Join, centre per request, pooled std, mean of the scorers, best against worst, ties out, same columns."""
    import duckdb

    base = Path(folder)
    aliases = sorted(p.name for p in (base / "scores").iterdir())
    db = duckdb.connect(config={"threads": 2})
    joins = " ".join(f"JOIN read_parquet('{base}/scores/{a}/*.parquet') {a} ON {a}.id = c.id" for a in aliases)
    raw = ", ".join(f"{a}.value AS {a}" for a in aliases)
    centred = ", ".join(f"{a} - avg({a}) OVER w AS d_{a}" for a in aliases)
    pooled = ", ".join(f"sqrt(sum(d_{a} * d_{a}) / (count(*) - count(DISTINCT request_id))) AS sd_{a}" for a in aliases)
    value = " + ".join(f"d_{a} / sd_{a}" for a in aliases)
    sides = ", ".join(f"w.{a} AS score_0_{a}, l.{a} AS score_1_{a}" for a in aliases)
    agree = " + ".join(f"(w.{a} > l.{a})::INT" for a in aliases)
    db.execute(f"""
        CREATE TEMP TABLE d AS SELECT *, {centred} FROM (
            SELECT c.id, c.request_id, c.index, c.seed, c.sha256, {raw}
            FROM read_parquet('{base}/candidates/own/*.parquet') c {joins} WHERE c.error IS NULL
        ) WINDOW w AS (PARTITION BY request_id);
        CREATE TEMP TABLE v AS SELECT d.*, ({value}) / {len(aliases)} AS value FROM d, (SELECT {pooled} FROM d);
        CREATE TEMP TABLE r AS SELECT *, row_number() OVER w AS best, count(*) OVER (PARTITION BY request_id) AS n
            FROM v WINDOW w AS (PARTITION BY request_id ORDER BY value DESC, index);
        COPY (SELECT q.prompt AS caption, w.request_id, w.id AS candidate_0, l.id AS candidate_1, w.sha256 AS image_0_uid,
            l.sha256 AS image_1_uid, w.seed AS seed_0, l.seed AS seed_1, w.value - l.value AS score_gap,
            l.best - w.best AS rank_gap, 1 / (1 + exp(l.value - w.value)) AS p, ({agree}) / {len(aliases)} AS agreement,
            1.0 AS label_0, 0.0 AS label_1, 'own' AS model_0, 'own' AS model_1, 'topk_bottomk' AS strategy, {sides}
            FROM (SELECT * FROM r WHERE best = 1) w JOIN (SELECT * FROM r WHERE best = n) l USING (request_id)
            JOIN read_parquet('{base}/requests.parquet') q USING (request_id) WHERE w.value - l.value > 0.1)
        TO '{base}/duckdb.parquet' (FORMAT parquet)""")


def timed(name: str, call, folder: Path) -> float:
    def work(pipe) -> None:
        start = time.perf_counter()
        call(str(folder))
        used = resource.getrusage(resource.RUSAGE_SELF)
        pipe.send((time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20))

    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=work, args=(there,))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{name} failed")
    seconds, busy, memory = here.recv()
    print(f"{name:8} {seconds:7.1f} s  {busy:7.1f} s of CPU  {memory:5.2f} GiB at most")
    return seconds


def same(folder: Path) -> bool:
    import duckdb

    won = "CASE WHEN label_0 = 1 THEN {0} ELSE {1} END"
    mine = f"SELECT {won.format('candidate_0', 'candidate_1')}, {won.format('candidate_1', 'candidate_0')} FROM read_parquet('{folder}/pairs/main/train/*.parquet')"
    other = f"SELECT candidate_0, candidate_1 FROM read_parquet('{folder}/duckdb.parquet')"
    found = duckdb.sql(
        f"SELECT (SELECT count(*) FROM (({mine}) EXCEPT ({other}))) + (SELECT count(*) FROM (({other}) EXCEPT ({mine})))"
    ).fetchall()
    return found == [(0,)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_250_000)
    parser.add_argument("--n", type=int, default=8)
    parser.add_argument("--scorers", type=int, default=3)
    parser.add_argument("--shuffled", action="store_true", help="scores in another order than the candidates")
    parser.add_argument("--folder", type=Path, help="keep the run here instead of in a temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary) / "run"
        if not folder.exists():
            work = multiprocessing.get_context("fork").Process(
                target=build, args=(folder, args.requests, args.n, args.scorers, args.shuffled)
            )
            work.start()
            work.join()
        ratio = timed("prefkit", ours, folder) / timed("duckdb", theirs, folder)
        print(f"ratio    {ratio:7.2f}    same pairs: {same(folder)}")


if __name__ == "__main__":
    main()
