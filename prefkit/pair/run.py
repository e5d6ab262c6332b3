"""The pair stage: scores of a run -> RUN/pairs/NAME, a dataset that `datasets.load_dataset` reads as it stands."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from prefkit import registry
from prefkit.config import Pair, Recipe, content
from prefkit.errors import PluginError, StoreError, UsageError
from prefkit.output import note
from prefkit.pair.combine import combine
from prefkit.pair.dataset import write_dataset
from prefkit.store import Store, read_json
from prefkit.types import digest

DEFAULT_TIE = 0.1


def run_pair(store: Store, recipe: Recipe, name: str, *, limit: int | None = None) -> dict[str, Any]:
    """Build the pairs anew from what is scored now; unchanged input leaves the dataset as it is. Returns counts.

    limit: at most this many requests. Raises UsageError for missing scores, too large a K, nothing to prefer.
    """
    config = recipe.pair[name]
    if config.tie is not None and config.tie < 0:
        raise UsageError(f"pair.{name}.tie is {config.tie}: it must be at least 0, for ties never become pairs.")
    with store.lock(f"pairs/{name}"):
        weights = weights_of(store, config)
        frame, specs = score_frame(store, config, weights, limit)
        counts: dict[str, Any] = {"requests": frame.request_id.nunique(), "candidates": len(frame)}
        frame = apply_decisions(store, frame, counts)
        frame = apply_missing(frame, list(weights), config.missing, counts)
        strategy = registry.make("strategy", config.use, config.options, f"pair.{name}")
        _check_sizes(strategy, frame, name, config)
        spec = {
            "settings": content(config),
            "weights": weights,
            "scorers": specs,
            "scores": _scores_hash(frame, list(weights)),
            "code": registry.code_hash(config.use, "strategy"),
        }
        folder = store.pairs(name)
        if _whole(folder) and read_json(folder / "spec.json").get("spec") == spec:
            return read_json(folder / "spec.json")["counts"] | {"unchanged": True}
        pairs = build_pairs(frame, weights, specs, strategy, config, counts)
        if pairs.empty:
            raise UsageError(f"pair.{name}: no pair is left. {_why_empty(frame, counts, list(weights))}")
        _replace(folder, lambda new: write_dataset(store, pairs, new, name, spec, counts, config))
    note(f"pair {name}: {counts['pairs']} pairs from {counts['requests_with_pairs']} requests")
    return counts


def weights_of(store: Store, config: Pair) -> dict[str, float]:
    """Alias -> weight of the scores to pair on. Raises UsageError where a table is not there."""
    there = store.names("scores")
    if not there:
        raise UsageError(f"there are no scores in {store.folder}: run `prefkit score {store.folder}` first.")
    weights = dict(config.weights) or {
        a: 1.0 for a in there if not (store.scores(a).spec() or {}).get("evaluation_only")
    }
    missing = [a for a in weights if a not in there]
    if missing:
        raise UsageError(
            f"pair: no scores called {', '.join(missing)}; there are {', '.join(there)}. Run `prefkit score` for them."
        )
    forbidden = [a for a in weights if (store.scores(a).spec() or {}).get("evaluation_only")]
    if forbidden or not weights:
        raise UsageError(
            f"pair: {', '.join(forbidden or there)} may be used for evaluation only. Pair on another scorer."
        )
    if not any(weights.values()):
        raise UsageError("pair: every weight is 0. Give at least one scorer a weight.")
    return {a: w for a, w in weights.items() if w}


def score_frame(
    store: Store, config: Pair, weights: dict[str, float], limit: int | None
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """One row per candidate: id, request_id, index, seed, generator, split, caption, and a column per alias."""
    parts = []
    there = store.names("candidates")
    unknown = [name for name in config.generators if name not in there]
    if unknown:
        raise UsageError(
            f"pair: no candidates of {', '.join(unknown)}; there are those of {', '.join(there) or 'none'}."
        )
    for generator in config.generators or there:
        part = store.candidates(generator).frame(["id", "request_id", "index", "seed", "sha256", "error"])
        parts.append(part[part.error.isna()].assign(generator=generator))
    if not parts:
        raise UsageError(f"there are no candidates in {store.folder}: run `prefkit generate {store.folder}` first.")
    frame = pd.concat(parts, ignore_index=True)
    requests = {r.request_id: r for r in store.requests()}
    frame = frame[frame.request_id.isin(requests)]
    if limit is not None:
        frame = frame[frame.request_id.isin(list(dict.fromkeys(frame.request_id))[:limit])]
    frame = frame.assign(
        caption=frame.request_id.map(lambda r: requests[r].prompt),
        split=frame.request_id.map(lambda r: requests[r].split),
    )
    specs: dict[str, Any] = {}
    for alias in weights:
        table = store.scores(alias)
        specs[alias] = table.spec() or {}
        values = table.frame(["id", "value"]).set_index("id").value
        frame[alias] = frame.id.map(values).astype("float64")
    return frame.sort_values(["request_id", "generator", "index"], ignore_index=True), specs


def apply_decisions(store: Store, frame: pd.DataFrame, counts: dict[str, Any]) -> pd.DataFrame:
    decisions = store.decisions()
    for verdict in ("reject", "remove"):
        out = frame.id.isin(decisions.id[decisions.verdict == verdict])
        counts[f"decided_{verdict}"] = int(out.sum())
        frame = frame[~out]
    return frame


def apply_missing(frame: pd.DataFrame, aliases: list[str], policy: str, counts: dict[str, Any]) -> pd.DataFrame:
    if policy not in ("drop_candidate", "drop_request"):
        raise UsageError(f"pair: missing {policy!r} is not known; choose drop_candidate or drop_request.")
    lacking = frame[aliases].isna().any(axis=1)
    counts["missing_scores"] = int(lacking.sum())
    if policy == "drop_request":
        lacking = frame.request_id.isin(frame.request_id[lacking])
    return frame[~lacking].reset_index(drop=True)


def _check_sizes(strategy: Any, frame: pd.DataFrame, name: str, config: Pair) -> None:
    largest = int(frame.groupby("request_id").size().max()) if len(frame) else 0
    needs = getattr(strategy, "needs", 2)
    if needs < 2:
        raise UsageError(f"pair.{name}: k must be at least 1.")
    if len(frame) and largest < needs:
        raise UsageError(
            f"pair.{name}: {config.use} needs {needs} scored candidates per request, but no request has more than {largest}. "
            + (
                "Generate at least two per request (n)."
                if largest < 2
                else f"Use k up to {largest // 2}, or generate more (n)."
            )
        )


def build_pairs(
    frame: pd.DataFrame,
    weights: dict[str, float],
    specs: dict[str, Any],
    strategy: Any,
    config: Pair,
    counts: dict[str, Any],
) -> pd.DataFrame:
    """One row per pair: winner and loser, gap, rank gap, p, and the share of the scores that agree with the verdict."""
    groups = pd.factorize(frame.request_id)[0]
    signs = {a: 1.0 if specs[a].get("higher_is_better", True) else -1.0 for a in weights}
    value, scores = combine(
        {a: frame[a].to_numpy(np.float64) for a in weights}, signs, weights, groups, config.normalise
    )
    if hasattr(strategy, "fit"):
        strategy.fit(scores)
    tie = config.tie if config.tie is not None else (0.0 if config.normalise == "none" else DEFAULT_TIE)
    wanted = np.sign(list(weights.values()))
    rows: list[dict[str, Any]] = []
    ties = 0
    for members in np.split(np.arange(len(frame)), np.flatnonzero(np.diff(groups)) + 1) if len(frame) else []:
        ranks = np.argsort(np.argsort(-value[members], kind="stable"), kind="stable")
        for win, lose, gap in _pairs_of(strategy, value[members], scores[members], config.use):
            if gap <= tie:
                ties += 1
                continue
            w, loser = members[win], members[lose]
            rows.append(
                {
                    "win": w,
                    "lose": loser,
                    "score_gap": gap,
                    "rank_gap": int(ranks[lose] - ranks[win]),
                    "p": float(1 / (1 + np.exp(-gap))),
                    "agreement": float(np.mean(wanted * (scores[w] - scores[loser]) > 0)),
                }
            )
    pairs = pd.DataFrame(rows)
    counts |= {"pairs": len(pairs), "ties": ties, "tie_threshold": tie}
    if rows:
        sides = {s: frame.iloc[pairs[s]].reset_index(drop=True) for s in ("win", "lose")}
        pairs = pd.concat(
            [pairs.drop(columns=["win", "lose"]), *(f.add_prefix(f"{s}_") for s, f in sides.items())], axis=1
        )
        counts["requests_with_pairs"] = int(pairs.win_request_id.nunique())
    return pairs


def _pairs_of(strategy: Any, value: np.ndarray, scores: np.ndarray, name: str) -> Sequence[tuple[int, int, float]]:
    found = strategy.pairs(value, scores)
    for win, lose, gap in found:
        if win == lose or not gap >= 0:
            raise PluginError(
                f"strategy {name} returned the pair ({win}, {lose}) with gap {gap}; a winner must differ and not be worse."
            )
    return found


def _why_empty(frame: pd.DataFrame, counts: dict[str, Any], aliases: list[str]) -> str:
    if frame.empty and counts["missing_scores"]:
        return (
            f"No candidate has all of the scores {', '.join(aliases)}: did the scorer fail? See `error` in its table."
        )
    if frame.empty:
        if counts["decided_reject"] or counts["decided_remove"]:
            return "No candidate is left after decisions.csv."
        return "There is no candidate with an image: run `prefkit generate`."
    if counts.get("ties"):
        return f"All {counts['ties']} would be ties (gap at or below {counts['tie_threshold']}): the scores do not tell candidates apart. Use another scorer, or lower `tie`."
    return "The strategy chose none; lower its threshold or generate more candidates (n)."


def _scores_hash(frame: pd.DataFrame, aliases: list[str]) -> str:
    columns = [frame.id, frame.caption, frame.split, *(frame[a].map(repr) for a in aliases)]
    return digest([column.tolist() for column in columns])


def _whole(folder: Path) -> bool:
    """Whether the dataset is there and its files can be opened."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return all(pq.read_metadata(path) for path in folder.glob("*/*.parquet")) and (folder / "spec.json").exists()
    except (pa.ArrowException, OSError):
        return False


def _replace(folder: Path, write: Any) -> None:
    """Write a folder beside the old one, then swap: a reader sees the old or the new dataset, never half of one."""
    new, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    try:
        for rest in (new, old):
            shutil.rmtree(rest, ignore_errors=True)
        new.mkdir(parents=True)
        write(new)
        for file in new.rglob("*.parquet"):
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise StoreError(f"{folder} could not be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
