"""Summaries of a run: row counts, candidates and scores as data frames, and pairs for a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefkit.errors import DamagedError
from prefkit.output import message
from prefkit.store.files import read_json, read_lines
from prefkit.store.seal import check, open_sealed

if TYPE_CHECKING:
    import pandas as pd

    from prefkit.store import Store
    from prefkit.store.table import Table

INDEX = ["id", "request_id", "index", "seed", "error"]


def status(store: Store) -> dict[str, Any]:
    """Return the state of each stage as a JSON-ready dict; a stage that has not run yet has an empty entry.

    requests {split: n}; candidates {generator: {done, failed}}; scores {name: {done, failed}};
    pairs {name: {split: n}}; train {name: {step, final}}; eval {name: {done, sets}};
    decisions {verdict: n}. If the run has offline rounds, names start with the round: "round 2/own".
    """
    if rounds := store.rounds():
        return _status_of_rounds(store, {number: status(part) for number, part in rounds.items()})
    return {
        "run": str(store.folder),
        "requests": dict(Counter(request.split for request in store.requests())),
        "candidates": {n: _rows(store.candidates(n), "error", missing=False) for n in store.names("candidates")},
        "scores": {n: _rows(store.scores(n), "value", missing=True) for n in store.names("scores")},
        "pairs": {name: pair_counts(store.pairs(name)) for name in store.names("pairs")},
        "train": {name: _train(store.train(name)) for name in store.names("train")},
        "eval": {name: _eval(store.eval(name)) for name in store.names("eval")},
        "decisions": {str(k): int(n) for k, n in store.decisions().verdict.value_counts().items()},
    }


def _status_of_rounds(store: Store, rounds: dict[int, dict[str, Any]]) -> dict[str, Any]:
    state: dict[str, Any] = {"run": str(store.folder), "requests": next(iter(rounds.values()))["requests"]}
    for kind in ("candidates", "scores", "pairs", "train", "eval", "decisions"):
        state[kind] = {f"round {n}/{name}": entry for n, part in rounds.items() for name, entry in part[kind].items()}
    return state


def _rows(table: Table, column: str, missing: bool) -> dict[str, int]:
    """Count finished and failed rows. A failed row has no value in `column` (missing=True), or has one (False)."""
    frame = table.frame(["id", column])
    failed = int((frame[column].isna() == missing).sum())
    return {"done": len(frame) - failed, "failed": failed}


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the readable rows of metrics.jsonl."""
    return read_lines(folder / "metrics.jsonl")


def _train(folder: Path) -> dict[str, Any]:
    steps = [row["step"] for row in metrics(folder) if isinstance(row.get("step"), int)]
    return {"step": max(steps, default=0), "final": (folder / "final").exists()}


def _eval(folder: Path) -> dict[str, Any]:
    path = folder / "result.json"
    done = path.exists()
    return {"done": done, "sets": sorted(read_json(path).get("sets", {})) if done else []}


def candidate_index(store: Store) -> pd.DataFrame:
    """Return a frame with the generator, id, request_id, index, seed and error of every candidate."""
    import pandas as pd

    frames = [store.candidates(name).frame(INDEX).assign(generator=name) for name in store.names("candidates")]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*INDEX, "generator"])


def without_images(store: Store) -> set[str]:
    """Return the generators whose first finished candidate has no image, such as a mesh that was not rendered."""
    names = set()
    for name in store.names("candidates"):
        columns = ["id", "request_id", "index", "seed", "image", "path", "payload", "error"]
        made = (c for c in store.iter_candidates([name], columns=columns) if c.error is None)
        first = next(made, None)
        if first is not None and first.image is None and first.path is None and first.payload is not None:
            names.add(name)
    return names


def score_table(store: Store) -> pd.DataFrame:
    """Return the stored scores: one column per score name, one row per candidate id, NaN if failed or not scored."""
    import pandas as pd

    columns = {
        alias: store.scores(alias).frame(["id", "value"]).set_index("id").value for alias in store.names("scores")
    }
    return pd.DataFrame(columns, dtype=float).rename_axis("id")


def higher_is_better(store: Store, alias: str) -> bool:
    return bool((store.scores(alias).spec() or {}).get("higher_is_better", True))


def rank_correlation(store: Store, scores: pd.DataFrame) -> pd.DataFrame:
    """Return the pairwise Spearman correlations of the scores, after negating scores where lower is better."""
    signs = {alias: 1.0 if higher_is_better(store, alias) else -1.0 for alias in scores.columns}
    return (scores * signs).replace([np.inf, -np.inf], np.nan).corr(method="spearman")


def pair_counts(folder: Path) -> dict[str, int]:
    """Return {split: number of pairs}, read from the Parquet footers. Raises DamagedError."""
    counts: Counter[str] = Counter()
    for path in _pair_files(folder):
        with _open(path, []) as file:
            counts[path.parent.name] += file.metadata.num_rows
    return dict(counts)


class Pairs:
    """The pairs in a folder. Only the score gaps are kept in memory; `row` reads a pair. Raises DamagedError."""

    def __init__(self, folder: Path) -> None:
        self.paths = _pair_files(folder)
        self.files = [_open(path, ["score_gap"]) for path in self.paths]
        self.where: list[tuple[int, int]] = []  # (index of the file, row in it) of every pair
        gaps = []
        for index, file in enumerate(self.files):
            rows = file.metadata.num_rows
            self.where += [(index, row) for row in range(rows)]
            known = "score_gap" in file.schema_arrow.names
            column = file.read(["score_gap"]).column(0).to_numpy() if known else np.full(rows, np.nan)
            gaps.append(np.asarray(column, np.float64))
        self.gaps = np.concatenate(gaps) if gaps else np.empty(0)

    def extremes(self, count: int) -> tuple[list[int], list[int]]:
        """Return (indices of the `count` pairs with the largest gaps, those with the smallest), without overlap."""
        order = np.argsort(-self.gaps, kind="stable")
        order = order[np.isfinite(self.gaps[order])]
        count = min(count, (len(order) + 1) // 2)
        return order[:count].tolist(), order[count:][::-1][:count].tolist()

    def row(self, number: int) -> dict[str, Any]:
        """Return pair `number` with all columns, including images."""
        index, row = self.where[number]
        file, path = self.files[index], self.paths[index]
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if row < rows:
                _guarded(path, partial(check, path, file.metadata, group=group))
                return file.read_row_group(group).slice(row, 1).to_pylist()[0]
            row -= rows
        raise IndexError(number)


def _pair_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.parquet"))


def _open(path: Path, columns: list[str]) -> Any:
    return _guarded(path, partial(open_sealed, path, columns))


def _guarded(path: Path, work: Callable[[], Any]) -> Any:
    import pyarrow as pa

    try:
        return work()
    except (pa.ArrowException, OSError) as error:
        text = message(str(error), 160).rstrip(".")
        remedy = f"Remove {path.parent.parent} and run `prefkit pair` again."
        raise DamagedError(path, f"{path} is damaged: {text}. {remedy}") from error
