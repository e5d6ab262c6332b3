"""Tables of all verdicts by people or by model judges, and of the candidates and scores to compare them with."""

from __future__ import annotations

import numpy as np
import pandas as pd

from prefkit.errors import UsageError
from prefkit.store import Store
from prefkit.store.summary import candidate_index, higher_is_better
from prefkit.types import digest

COLUMNS = ["id", "id_a", "id_b", "outcome", "judge", "order", "aspect", "time"]


def check_column(store: Store, column: str) -> None:
    """Raise UsageError if no request of the run has a value in this column."""
    requests = store.requests()
    if not any(r.extra.get(column) for r in requests):
        known = ", ".join(dict.fromkeys(name for r in requests for name in r.extra)) or "none besides the prompt"
        raise UsageError(f"--by {column}: no request of {store.folder} has this column; the columns are {known}.")


def verdicts(store: Store, people: bool) -> pd.DataFrame:
    """Return one row per verdict. people: True for people's imported votes, False for verdicts of model judges.

    first, second: candidate ids, sorted, so that a pair is the same in both orders; verdict: 1 (first is better), -1
    or 0 (tie); order: "ab", "ba" or "both"; left: 1 (left image chosen), 0 or NaN (unknown); showing: 0 for a judge's
    earliest verdict on a pair, 1 for the next. Failed verdicts are left out. Verdicts on single aspects are left out if
    any is on overall quality.
    """
    frames = []
    for alias in store.names("comparisons"):
        table = store.comparisons(alias)
        if ("imported" in (table.spec() or {})) == people:
            frame = table.frame(COLUMNS)
            # a table's name identifies a model judge; a person has the same name in every table
            frames.append(frame if people else frame.assign(judge=alias))
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS)
    if people:  # a live vote whose file was imported under another name is one vote
        frame = frame.drop_duplicates("id")
    frame = frame[frame.outcome.isin(["a", "b", "tie"]) & (frame.id_a != frame.id_b)]
    overall = frame.aspect.fillna("") == ""
    if overall.any():
        frame = frame[overall]
    swapped = (frame.id_a > frame.id_b).to_numpy(bool)
    verdict = frame.outcome.map({"a": 1, "b": -1, "tie": 0}).to_numpy(np.int64)
    side = np.where(frame.order == "ab", 1, np.where(frame.order == "ba", -1, 0)) * verdict
    columns = {
        "first": np.where(swapped, frame.id_b, frame.id_a),
        "second": np.where(swapped, frame.id_a, frame.id_b),
        "verdict": np.where(swapped, -verdict, verdict),
        "judge": frame.judge.to_numpy(),
        "left": np.where(side == 0, np.nan, side > 0),
        "order": frame.order.to_numpy(),
        "time": frame.time.to_numpy(np.float64),
        "id": frame.id.to_numpy(),
    }
    result = pd.DataFrame(columns).sort_values(["time", "id"], kind="stable", ignore_index=True)
    return result.assign(showing=result.groupby(["judge", "first", "second"]).cumcount())


def evaluations(store: Store) -> dict[tuple[str, str, str], Store]:
    """Return {(evaluation, set, model): store of the model's images}. Its folder is laid out like a run folder."""
    return {
        (name, folder.parent.name, folder.name): Store(folder)
        for name in store.names("eval")
        for folder in sorted(store.eval(name).glob("*/*"))
        if (folder / "run.json").exists()
    }


def candidates(store: Store, folders: dict[tuple[str, str, str], Store]) -> pd.DataFrame:
    """Return id, request_id, index, eval, set, model of all candidates; the last 3 are "" outside evaluations."""
    frames = []
    for (name, set_name, model), folder in {("", "", ""): store, **folders}.items():
        index = candidate_index(folder)[["id", "request_id", "index"]]
        frames.append(index.assign(eval=name, set=set_name, model=model))
    return pd.concat(frames, ignore_index=True)


def scores(store: Store, folders: dict[tuple[str, str, str], Store]) -> dict[str, pd.Series]:
    """Return {alias: scores in the run and its evaluations}, indexed by candidate id, negated if lower is better.

    If an evaluation used a scorer with another specification, its scores are listed as "alias (evaluation)".
    """
    parts: dict[str, list[pd.Series]] = {}
    specs: dict[str, str] = {}
    for (name, _, _), folder in {("", "", ""): store, **folders}.items():
        for alias in folder.names("scores"):
            table = folder.scores(alias)
            spec = digest(table.spec())
            label = alias if specs.setdefault(alias, spec) == spec else f"{alias} ({name})"
            sign = 1.0 if higher_is_better(folder, alias) else -1.0
            values = table.frame(["id", "value"]).set_index("id").value
            parts.setdefault(label, []).append(sign * values.astype(float))
    joined = {alias: pd.concat(series) for alias, series in parts.items()}
    return {alias: values[~values.index.duplicated()] for alias, values in joined.items()}
