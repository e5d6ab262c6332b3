"""The pair stage: scores of a run -> RUN/pairs/NAME, a dataset that `datasets.load_dataset` reads as it stands."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from prefkit import registry
from prefkit.config import Pair, Recipe, bounds, compatibility, content, plugin_options
from prefkit.errors import NotYet, UsageError
from prefkit.images import Background
from prefkit.output import note, shell_quoted, warn
from prefkit.pair.audit import audit, warnings_of
from prefkit.pair.card import card
from prefkit.pair.choose import Outcome, choose_by, lacking, tie_of, top_pairs
from prefkit.pair.contract import checked_table
from prefkit.pair.curate import curate
from prefkit.pair.dataset import IMAGES, PairTable, write_lists, write_pairs, write_ties
from prefkit.pair.leaks import leaks
from prefkit.pair.pool import Pool, add_scores, hashed, read_pool
from prefkit.store import Store
from prefkit.store.files import sound_json, write_atomic, write_json
from prefkit.store.folders import whole_folder
from prefkit.store.own import check_pairs
from prefkit.store.reader import CandidateReader
from prefkit.store.seal import check, open_sealed
from prefkit.types import digest

NO_WEIGHT = "pair: every weight is 0. Give at least one scorer a weight."
MISSING = ("drop_candidate", "drop_scorer", "drop_request")


def run_pair(store: Store, recipe: Recipe, name: str, *, limit: int | None = None) -> dict[str, Any]:
    """Build the pairs anew from what is scored now; unchanged input leaves the dataset as it is. Returns counts.

    limit: at most this many requests. Raises UsageError for missing scores, too large a K, nothing to prefer.
    """
    config, strategy = settings_of(recipe, name)
    with store.lock(f"pairs/{name}"):
        weights, pool, specs, seen, counts, votes = _gathered(store, config, strategy, name, limit)
        spec = {
            "settings": content(config),
            # verdicts choose these pairs: scores stand beside them, and weigh nothing
            **({"weights": weights} if votes is None else {"weights": {}, "comparisons": tables_of(votes)}),
            "scorers": specs,
            "scores": _hash_of(pool, list(weights), votes),
            "code": registry.code_hash(config.use, "strategy"),
            "pixels": Background.rules(),
        }
        folder = store.pairs(name)
        made = sound_json(folder / "spec.json") if _whole(folder) else None
        if made is not None and made.get("spec") == spec:
            return made["counts"] | {"unchanged": True}
        found = _chosen(pool, weights, specs, strategy, config, counts, votes, name)
        report = audit(pool, found, list(weights), seen)
        report["splits"] = leaks(pool, np.r_[found.pairs.win.to_numpy(), found.pairs.lose.to_numpy()], seen)
        report["warnings"] = warnings_of(report)
        _replace(folder, lambda new: _write(store, new, name, pool, found, spec, counts, config, report))
    note(f"pair {name}: {counts['pairs']} pairs from {counts['requests_with_pairs']} requests")
    for text in report["warnings"]:
        note(f"pair {name}: {text}")
    return counts


def settings_of(recipe: Recipe, name: str) -> tuple[Pair, Any]:
    """The entry's settings and its strategy. Raises UsageError for settings that do not fit it."""
    compatibility.check("pair", name, recipe)
    strategy = plugin_options.make("strategy", recipe.pair[name].use, recipe.pair[name].options, f"pair.{name}")
    return settled(recipe.pair[name], strategy, name), strategy


def checked(store: Store, recipe: Recipe, name: str, limit: int | None) -> tuple[dict[str, float], int]:
    """(weights, candidates that can be paired), after every check of `run_pair`. A dry run: nothing is written, and images
    that nobody has looked at yet count as good ones. Raises UsageError."""
    config, strategy = settings_of(recipe, name)
    weights, pool, specs, _, counts, votes = _gathered(store, config, strategy, name, limit, write=False)
    _chosen(pool, weights, specs, strategy, config, counts, votes, name)
    return weights, len(pool)


def _gathered(
    store: Store, config: Pair, strategy: Any, name: str, limit: int | None, write: bool = True
) -> tuple[Any, ...]:
    """(weights, pool, the scores' specs, looks, counts, votes): all that pairs are chosen from."""
    reads = hasattr(strategy, "compared")  # votes, where others read scores
    weights = weights_of(store, config, needed=not reads)
    pool, specs = add_scores(store, read_pool(store, config, limit), list(weights))
    counts: dict[str, Any] = {"requests": int(pool.frame.request.nunique()), "candidates": len(pool)}
    pool, seen = curate(store, pool, config, counts, write=write)
    if not reads:
        pool, seen = drop_missing(pool, seen, list(weights), config.missing, counts)
        _check_sizes(strategy, pool, name, config)
    return weights, pool, specs, seen, counts, strategy.read(store) if reads else None


def _chosen(
    pool: Pool,
    weights: dict[str, float],
    specs: dict[str, Any],
    strategy: Any,
    config: Pair,
    counts: dict[str, Any],
    votes: pd.DataFrame | None,
    name: str,
) -> Outcome:
    """`choose_pairs` (or the strategy's own reading of votes) under the settings, counted. Raises UsageError where no pair
    is left."""
    groups, tie = pool.frame.request.to_numpy(), tie_of(config) if votes is None else config.tie or 0.0
    if votes is not None:
        every = strategy.compared(pool, votes)
        checked_table(every, groups, config.use)
        small = (every.score_gap <= tie).to_numpy()
        empty = np.full((len(pool), 0), np.nan)
        found = Outcome(every[~small].reset_index(drop=True), every[small].reset_index(drop=True), np.full(len(pool), np.nan), empty, np.zeros(0))  # fmt: skip
    else:
        columns = {a: pool.frame[a].to_numpy(np.float64) for a in weights}
        signs = {a: 1.0 if specs[a].get("higher_is_better", True) else -1.0 for a in weights}
        found = choose_by(config, strategy, columns, signs, weights, groups)
    if config.top_pairs is not None and len(found.pairs) > config.top_pairs:
        counts["beyond_top_pairs"] = len(found.pairs) - config.top_pairs
        winners = pool.ids.take(pa.array(pool.frame.row.to_numpy()[found.pairs.win.to_numpy()]))
        found = replace(found, pairs=top_pairs(found.pairs, config.top_pairs, hashed(winners)))
    counts |= {"pairs": len(found.pairs), "ties": len(found.ties), "tie_threshold": tie}
    counts["requests_with_pairs"] = len(np.unique(groups[found.pairs.win.to_numpy()]))
    if found.pairs.empty:
        raise UsageError(f"pair.{name}: no pair is left. {_why_empty(pool, counts, list(weights))}")
    return found


def settled(config: Pair, strategy: Any, name: str) -> Pair:
    """The settings with those that the strategy's preset prescribes. Raises UsageError for one that contradicts them."""
    for key, value in getattr(strategy, "fixes", {}).items():
        default = next(f.default for f in fields(Pair) if f.name == key)
        if getattr(config, key) not in (default, value):
            raise UsageError(
                f"pair.{name}.{key} is {getattr(config, key)!r}, but the preset wants {value!r}. Leave it out."
            )
        config = replace(config, **{key: value})
    bounds.check(config, f"pair.{name}")
    if config.weights and not any(config.weights.values()):
        raise UsageError(NO_WEIGHT)
    if config.missing not in MISSING:
        raise UsageError(f"pair: missing {config.missing!r} is not known; choose one of {', '.join(MISSING)}.")
    return config


def weights_of(store: Store, config: Pair, needed: bool = True) -> dict[str, float]:
    """Alias -> weight of the scores to pair on. Raises UsageError where a table is not there (and is needed)."""
    there = store.names("scores")
    if not there and needed:
        text = f"there are no scores in {store.folder}: run `prefkit score {shell_quoted(store.folder)}` first."
        raise NotYet(text, "score", list(config.weights))
    only = {a for a in there if (store.scores(a).spec() or {}).get("evaluation_only")}
    weights = dict(config.weights) or {a: 1.0 for a in there if a not in only}
    missing = [a for a in weights if a not in there]
    if missing:
        raise NotYet(no_scores(missing, there), "score", missing)
    forbidden = [a for a in weights if a in only]
    if forbidden or (not weights and needed):
        raise UsageError(
            f"pair: {', '.join(forbidden or there)} may be used for evaluation only. Pair on another scorer."
        )
    if needed and not any(weights.values()):
        raise UsageError(NO_WEIGHT)
    unknown = [a for a in config.ties if a not in weights]
    if unknown:
        raise UsageError(
            f"pair: ties names {', '.join(unknown)}, which is not paired on; there are {', '.join(weights)}."
        )
    return {a: w for a, w in weights.items() if w}


def no_scores(missing: Sequence[str], there: Sequence[str]) -> str:
    return f"pair: no scores called {', '.join(missing)}; there are {', '.join(there)}. Run `prefkit score` for them."


def tables_of(votes: pd.DataFrame) -> list[str]:
    """The tables under comparisons/ that hold these verdicts."""
    return sorted({str(judge).partition("/")[0] for judge in votes.judge})


def drop_missing(
    pool: Pool, seen: pd.DataFrame | None, aliases: list[str], policy: str, counts: dict[str, Any]
) -> tuple[Pool, pd.DataFrame | None]:
    scores = pool.frame[aliases].to_numpy(np.float64)
    counts["missing_scores"] = int(np.isnan(scores).any(axis=1).sum())
    out = lacking(scores, pool.frame.request.to_numpy(), policy)
    return pool.without(out), seen.iloc[np.flatnonzero(~out)] if seen is not None else None


def _check_sizes(strategy: Any, pool: Pool, name: str, config: Pair) -> None:
    if getattr(strategy, "needs", 2) < 2:
        raise UsageError(f"pair.{name}: k must be at least 1.")
    if len(pool):
        check_size(strategy, int(np.bincount(pool.frame.request.to_numpy()).max()), name, config)


def check_size(strategy: Any, largest: int, name: str, config: Pair) -> None:
    """largest: the most candidates that a request has. Raises UsageError where the strategy needs more."""
    needs = getattr(strategy, "needs", 2)
    if largest < needs:
        raise UsageError(
            f"pair.{name}: {config.use} needs {needs} scored candidates per request, but no request has more than {largest}. "
            + (
                "Generate at least two per request (n)."
                if largest < 2
                else f"Use k up to {largest // 2}, or generate more (n)."
            )
        )


def _write(
    store: Store,
    folder: Path,
    name: str,
    pool: Pool,
    found: Outcome,
    spec: dict[str, Any],
    counts: dict[str, Any],
    config: Pair,
    report: dict[str, Any],
) -> None:
    table = PairTable(pool, [_model_name(store, g) for g in pool.generators], list(spec["scorers"]), config.use)
    image = CandidateReader(store, config.generators).image if config.embed else None
    counts["splits"] = write_pairs(table, found.pairs, folder, image)
    write_ties(table, found.ties, folder)
    if config.lists:
        counts["lists"] = write_lists(table, found.value, folder)
    for extra in ("ties", "lists"):
        if (folder / extra).exists():
            counts[f"{extra}_splits"] = sorted(p.name for p in (folder / extra).iterdir())
    write_json(folder / "spec.json", {"spec": spec, "counts": counts})
    write_json(folder / "audit.json", report | {"counts": counts})
    write_atomic(folder / "README.md", card(name, counts["splits"], spec, counts, config, report["warnings"]))


def _model_name(store: Store, generator: str) -> str:
    spec = store.candidates(generator).spec() or {}
    return f"{generator}@{spec.get('model') or spec.get('code') or 'unknown'}"


def _why_empty(pool: Pool, counts: dict[str, Any], aliases: list[str]) -> str:
    if not len(pool) and counts.get("missing_scores"):
        return (
            f"No candidate has all of the scores {', '.join(aliases)}: did the scorer fail? See `error` in its table."
        )
    if not len(pool):
        if counts["decided_reject"] or counts["decided_remove"]:
            return "No candidate is left after decisions.csv."
        taken = {k: n for k in ("black", "blank", "saturated", "unreadable") if (n := counts.get(k))}
        if taken:
            shown = ", ".join(f"{n} {k}" for k, n in taken.items())
            return f"Every image shows nothing ({shown}). Look at them; `degenerate: keep` pairs them all the same."
        return "There is no candidate with an image: run `prefkit generate`."
    if counts.get("ties"):
        return f"All {counts['ties']} would be ties (gap at or below {counts['tie_threshold']}): the scores do not tell candidates apart. Use another scorer, or lower `tie`."
    return "The strategy chose none; lower its threshold or generate more candidates (n)."


def _hash_of(pool: Pool, aliases: list[str], votes: pd.DataFrame | None) -> str:
    """What the pairs follow from, candidate by candidate: ids, prompts, splits, scores and votes."""
    hasher = hashlib.sha256()
    present = np.unique(pool.frame.request.to_numpy())
    texts = [pool.requests[name].take(pa.array(present)).combine_chunks() for name in ("request_id", "prompt", "split")]
    for text in [*texts, pool.ids.take(pa.array(pool.frame.row.to_numpy())).combine_chunks()]:
        text = text.cast(pa.large_string())
        offsets = np.frombuffer(text.buffers()[1], np.int64)[text.offset : text.offset + len(text) + 1]
        if len(offsets):
            hasher.update(np.diff(offsets).tobytes())
            hasher.update(memoryview(text.buffers()[2] or b"")[offsets[0] : offsets[-1]])
    hasher.update(pool.frame.generator.to_numpy().tobytes())
    for alias in aliases:
        hasher.update(pool.frame[alias].to_numpy(np.float64).tobytes())
    if votes is not None:
        hasher.update(digest(votes.to_dict("list")).encode())
    return hasher.hexdigest()[:20]


def _whole(folder: Path) -> bool:
    """Whether the dataset is there, with all rows that were written, and sound but for its images, which take long."""
    spec = sound_json(folder / "spec.json")
    if spec is None or sound_json(folder / "audit.json") is None:
        return False
    splits = spec["counts"]["splits"]
    rows = dict.fromkeys(splits, 0)
    try:
        for path in folder.rglob("*.parquet"):
            with open_sealed(path, ()) as file:
                check(path, file.metadata, {*file.schema_arrow.names} - {name for name, _ in IMAGES})
                if path.parent.parent == folder:
                    rows[path.parent.name] += file.metadata.num_rows
    except (pa.ArrowException, OSError, KeyError) as error:
        warn(f"{folder} is made again: {error}")
        return False
    return rows == splits


def _replace(folder: Path, write: Any) -> None:
    """Write a folder beside the old one, then swap: a reader sees the old or the new dataset, never half of one."""
    check_pairs(folder)
    with whole_folder(folder, manifest=False) as new:
        write(new)
