"""The pair stage: make RUN/pairs/NAME, a dataset for `datasets.load_dataset`, from a run's scores or votes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from prefkit import registry
from prefkit.config import Pair, Recipe, bounds, compatibility, content, plugin_options
from prefkit.config.redo import trained_on
from prefkit.errors import DamagedError, FingerprintError, UsageError
from prefkit.images import Background
from prefkit.output import note, warn
from prefkit.pair.audit import audit, warnings_of
from prefkit.pair.block import Aspects, distinct
from prefkit.pair.card import card
from prefkit.pair.choose import Outcome, choose_by, lacking, tie_of, top_pairs
from prefkit.pair.contract import check_table
from prefkit.pair.curate import curate
from prefkit.pair.dataset import IMAGES, PairTable, write_lists, write_pairs, write_ties
from prefkit.pair.leaks import leaks
from prefkit.pair.pool import Pool, add_scores, hashed, read_pool
from prefkit.pair.weights import NO_WEIGHT, note_added, weights_of, without_added
from prefkit.store import Store
from prefkit.store.files import read_json, sound_json, write_atomic, write_json
from prefkit.store.folders import check_pairs, whole_folder
from prefkit.store.reader import CandidateReader
from prefkit.store.seal import check, open_sealed
from prefkit.store.table import compare_settings
from prefkit.types import digest

CHOICES = {
    "missing": ("drop_candidate", "drop_scorer", "drop_request"),
    "duplicates": ("near", "exact", "keep"),
    "degenerate": ("drop", "keep"),
}


@dataclass
class Inputs:
    """The data from which pairs are chosen.

    weights: score name -> weight; specs: score name -> spec; stats: image statistics [N] in the pool's order, None
    if not measured; counts: numbers of requests, candidates and removed candidates; votes: the judges' verdicts, None
    if the strategy uses scores; aspects: of the pool's candidates, None if the strategy does not use them; added: scores
    that are left out of the weights, because a model was trained on these pairs before.
    """

    weights: dict[str, float]
    pool: Pool
    specs: dict[str, Any]
    stats: pd.DataFrame | None
    counts: dict[str, Any]
    votes: pd.DataFrame | None
    aspects: Aspects | None = None
    added: Sequence[str] = ()


def run_pair(store: Store, recipe: Recipe, name: str, *, limit: int | None = None) -> dict[str, Any]:
    """Build the pair set `name` from the current scores, unless it is up to date. Returns its counts.

    limit: maximum number of requests. Raises UsageError if scores or candidates are missing, or no pair is left.
    """
    config, strategy = settings_of(recipe, name)
    with store.lock(f"pairs/{name}"):
        inputs = _read(store, config, strategy, name, limit)
        weights = inputs.weights
        spec = _spec(inputs, config)
        folder = store.pairs(name)
        existing = sound_json(folder / "spec.json") if _complete(folder) else None
        _check_unused(store, name, spec)
        note_added(name, weights, inputs.added)
        if existing is not None and existing.get("spec") == spec:
            return existing["counts"] | {"unchanged": True}
        outcome = _choose(inputs, config, strategy, name)
        report = audit(inputs.pool, outcome, list(weights), inputs.stats)
        paired = np.r_[outcome.pairs.win.to_numpy(), outcome.pairs.lose.to_numpy()]
        report["splits"] = leaks(inputs.pool, paired, inputs.stats)
        report["warnings"] = warnings_of(report)
        check_pairs(folder)
        with whole_folder(folder, manifest=False) as new:  # so that nobody reads a partial dataset
            _write(store, new, name, inputs, outcome, spec, config, report)
    counts = inputs.counts
    note(f"pair {name}: {counts['pairs']} pairs from {counts['requests_with_pairs']} requests")
    for text in report["warnings"]:
        note(f"pair {name}: {text}")
    return counts


def settings_of(recipe: Recipe, name: str) -> tuple[Pair, Any]:
    """Return (settings of the pair entry `name`, its strategy). Raises UsageError for invalid settings."""
    strategy = plugin_options.make("strategy", recipe.pair[name].use, recipe.pair[name].options, f"pair.{name}")
    config = settled(recipe.pair[name], strategy, name)
    compatibility.check("pair", name, recipe, config)
    return config, strategy


def checked(store: Store, recipe: Recipe, name: str, limit: int | None) -> tuple[dict[str, float], int]:
    """Check everything for a dry run, and return ({score name: weight}, number of candidates that can be paired).

    Writes nothing. If image statistics are missing, no image counts as degenerate. Raises UsageError.
    """
    config, strategy = settings_of(recipe, name)
    inputs = _read(store, config, strategy, name, limit, write=False)
    _check_unused(store, name, _spec(inputs, config))
    note_added(name, inputs.weights, inputs.added)
    _choose(inputs, config, strategy, name)
    return inputs.weights, len(inputs.pool)


def _read(store: Store, config: Pair, strategy: Any, name: str, limit: int | None, write: bool = True) -> Inputs:
    by_votes = hasattr(strategy, "compared")
    every = weights_of(store, config, needed=not by_votes)
    weights, added = without_added(store, config, name, every, needed=not by_votes)
    pool, specs = add_scores(store, read_pool(store, config, limit), list(weights))
    counts: dict[str, Any] = {"requests": len(distinct(pool.frame.request.to_numpy())), "candidates": len(pool)}
    pool, stats = curate(store, pool, config, counts, write=write)
    if by_votes:
        return Inputs(weights, pool, specs, stats, counts, strategy.read(store))
    scores = pool.frame[list(weights)].to_numpy(np.float64)
    counts["missing_scores"] = int(np.isnan(scores).any(axis=1).sum())
    out = lacking(scores, pool.frame.request.to_numpy(), config.missing)
    pool, stats = pool.without(out), stats[~out] if stats is not None else None
    if len(pool):
        check_size(strategy, int(np.bincount(pool.frame.request.to_numpy()).max()), name, config)
    aspects = strategy.read_aspects(store, pool, list(weights)) if len(pool) and by_aspects(strategy) else None
    return Inputs(weights, pool, specs, stats, counts, None, aspects, added)


def by_aspects(strategy: Any) -> bool:
    """True if the strategy chooses pairs by the aspects of a score."""
    return hasattr(strategy, "read_aspects")


def _spec(inputs: Inputs, config: Pair) -> dict[str, Any]:
    """Return the settings and the data that determine the pairs."""
    weights, votes = inputs.weights, inputs.votes
    return {
        "settings": content(config),
        # with votes, scores are only stored in the dataset, so their weights do not matter
        **({"weights": weights} if votes is None else {"weights": {}, "comparisons": _tables(votes)}),
        "scorers": inputs.specs,
        "scores": _hash_of(inputs.pool, list(weights), votes, inputs.aspects),
        "code": registry.code_hash(config.use, "strategy"),
        "pixels": Background.rules(),
    }


def _check_unused(store: Store, name: str, spec: dict[str, Any]) -> None:
    """Raise FingerprintError if pairs/NAME was imported, or was made with other settings and a model was trained on it.

    Other pairs are replaced without asking: new scores change them, and they are made again in seconds.
    """
    stored: dict[str, Any] = {}
    with suppress(DamagedError, FileNotFoundError):
        stored = read_json(store.pairs(name) / "spec.json").get("spec") or {}
    try:
        before, now = ({key: of.get(key) for key in ("settings", "weights", "code")} for of in (stored, spec))
        compare_settings(store.pairs(name), before, now, "Use another name under pair.")
    except FingerprintError:
        imported = isinstance(stored.get("comparisons"), str)
        if imported or trained_on(store, name):
            raise


def _choose(inputs: Inputs, config: Pair, strategy: Any, name: str) -> Outcome:
    """Choose the pairs by scores or by votes, and add their number to the counts. Raises UsageError if none is left."""
    pool, counts, weights, votes = inputs.pool, inputs.counts, inputs.weights, inputs.votes
    groups = pool.frame.request.to_numpy()
    tie = tie_of(config) if votes is None else config.tie or 0.0
    if votes is not None:
        pairs = strategy.compared(pool, votes)
        check_table(pairs, groups, config.use)
        tied = (pairs.score_gap <= tie).to_numpy()
        pairs, ties = (pairs[mask].reset_index(drop=True) for mask in (~tied, tied))
        outcome = Outcome(pairs, ties, np.full(len(pool), np.nan), np.full((len(pool), 0), np.nan), np.zeros(0))
    else:
        columns = {a: pool.frame[a].to_numpy(np.float64) for a in weights}
        signs = {a: 1.0 if inputs.specs[a].get("higher_is_better", True) else -1.0 for a in weights}
        outcome = choose_by(config, strategy, columns, signs, weights, groups, inputs.aspects)
    if config.top_pairs is not None and len(outcome.pairs) > config.top_pairs:
        counts["beyond_top_pairs"] = len(outcome.pairs) - config.top_pairs
        winners = pool.ids.take(pa.array(pool.frame.row.to_numpy()[outcome.pairs.win.to_numpy()]))
        outcome = replace(outcome, pairs=top_pairs(outcome.pairs, config.top_pairs, hashed(winners)))
    counts |= {"pairs": len(outcome.pairs), "ties": len(outcome.ties), "tie_threshold": tie}
    counts["requests_with_pairs"] = len(distinct(groups[outcome.pairs.win.to_numpy()]))
    if inputs.aspects is not None:
        counts["pairs_by_aspect"] = outcome.pairs.aspect.value_counts().to_dict()
    if outcome.pairs.empty:
        raise UsageError(f"pair.{name}: no pair is left. {_why_empty(pool, counts, list(weights))}")
    return outcome


def settled(config: Pair, strategy: Any, name: str) -> Pair:
    """Return the settings, with the values that the strategy's preset sets. Raises UsageError if one is invalid."""
    for key, value in getattr(strategy, "fixes", {}).items():
        default = next(f.default for f in fields(Pair) if f.name == key)
        if getattr(config, key) not in (default, value):
            raise UsageError(
                f"pair.{name}.{key} is {getattr(config, key)!r}, but the preset sets it to {value!r}. Remove the key."
            )
        config = replace(config, **{key: value})
    bounds.check(config, f"pair.{name}")
    if config.weights and not any(config.weights.values()):
        raise UsageError(NO_WEIGHT)
    for key, choices in CHOICES.items():
        if getattr(config, key) not in choices:
            raise UsageError(
                f"pair.{name}: {key} {getattr(config, key)!r} is unknown; choose one of {', '.join(choices)}."
            )
    return config


def _tables(votes: pd.DataFrame) -> list[str]:
    """Return the names of the tables under comparisons/ from which these verdicts were read."""
    return sorted({str(judge).partition("/")[0] for judge in votes.judge})


def check_size(strategy: Any, largest: int, name: str, config: Pair) -> None:
    """Raise UsageError if the strategy needs more candidates per request than any request has (`largest`)."""
    needs = getattr(strategy, "needs", 2)
    if largest < needs:
        fix = f"Lower k to {largest // 2}, or generate more (n)." if largest > 1 else "Generate at least two (n)."
        fix += " Candidates that `filter` removes do not count; a weaker condition removes fewer." * bool(config.filter)
        raise UsageError(
            f"pair.{name}: {config.use} needs {needs} scored candidates per request, but no request has more than "
            f"{largest}. {fix}"
        )


def _write(
    store: Store,
    folder: Path,
    name: str,
    inputs: Inputs,
    outcome: Outcome,
    spec: dict[str, Any],
    config: Pair,
    report: dict[str, Any],
) -> None:
    counts = inputs.counts
    models = [_model_name(store, generator) for generator in inputs.pool.generators]
    table = PairTable(inputs.pool, models, list(spec["scorers"]), config.use)
    image = CandidateReader(store, config.generators).image if config.embed else None
    counts["splits"] = write_pairs(table, outcome.pairs, folder, image)
    write_ties(table, outcome.ties, folder)
    if config.lists:
        counts["lists"] = write_lists(table, outcome.value, folder)
    for extra in ("ties", "lists"):
        if (folder / extra).exists():
            counts[f"{extra}_splits"] = sorted(p.name for p in (folder / extra).iterdir())
    write_json(folder / "spec.json", {"spec": spec, "counts": counts})
    write_json(folder / "audit.json", report | {"counts": counts})
    write_atomic(folder / "README.md", card(name, counts["splits"], spec, counts, config, report["warnings"]))


def _model_name(store: Store, generator: str) -> str:
    spec = store.candidates(generator).spec() or {}
    return f"{generator}@{spec.get('model') or spec.get('code') or 'unknown'}"


def _why_empty(pool: Pool, counts: dict[str, Any], scores: list[str]) -> str:
    """Return the reason why no pair is left, and the fix."""
    if not len(pool) and counts.get("missing_scores"):
        return f"No candidate has all of the scores {', '.join(scores)}. See the column `error` in these tables."
    if not len(pool):
        removed = {
            "decisions.csv": counts["decided_reject"] + counts["decided_remove"],
            "`filter`": counts.get("filtered", 0),
            "`degenerate`": sum(counts.get(k, 0) for k in ("black", "blank", "saturated", "unreadable")),
        }
        if any(removed.values()):
            numbers = ", ".join(f"{n} by {rule}" for rule, n in removed.items() if n)
            return (
                f"All candidates were removed: {numbers}. Change {'it' if numbers.count(',') == 0 else 'one of these'}."
            )
        return "No candidate has an image: run `prefkit generate`."
    if counts.get("ties"):
        return (
            f"All {counts['ties']} pairs are ties (gaps of at most {counts['tie_threshold']}): the scores do not "
            "distinguish the candidates. Use another scorer, or lower `tie`."
        )
    if "pairs_by_aspect" in counts:
        return (
            "No two candidates of a request differ in one aspect alone. Change `aspect_tie`, or generate more candidates "
            "per request (n)."
        )
    return "The strategy chose no pair. Lower its threshold, or generate more candidates per request (n)."


def _hash_of(pool: Pool, aliases: list[str], votes: pd.DataFrame | None, aspects: Aspects | None) -> str:
    """Return a hash of the data that determines the pairs: ids, prompts, splits, scores, votes and aspects."""
    hasher = hashlib.sha256()
    present = pa.array(distinct(pool.frame.request.to_numpy()))
    texts = [pool.requests[name].take(present).combine_chunks() for name in ("request_id", "prompt", "split")]
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
    if aspects is not None:
        hasher.update(digest(aspects.names).encode() + aspects.code.tobytes() + aspects.values.tobytes())
    return hasher.hexdigest()[:20]


def _complete(folder: Path) -> bool:
    """True if the dataset is undamaged and complete; to save time, images are not checked."""
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
        warn(f"{folder} is damaged ({error}) and is built again.")
        return False
    return rows == splits
