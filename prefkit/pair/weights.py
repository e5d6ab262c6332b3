"""The scores by which candidates are paired, and their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

from prefkit.config import Pair
from prefkit.config.redo import trained_on
from prefkit.errors import DamagedError, NotYet, UsageError
from prefkit.output import note, shell_quoted
from prefkit.store import Store
from prefkit.store.files import read_json
from prefkit.store.query import in_query
from prefkit.store.table import read_part

NO_WEIGHT = "pair: every weight is 0. Give at least one score a weight other than 0."


def weights_of(store: Store, config: Pair, needed: bool = True) -> dict[str, float]:
    """Return {score name: weight} to pair by. Raises UsageError if a score is missing or evaluation-only.

    needed: raise UsageError if there are none.
    """
    known = [alias for alias in store.names("scores") if alias in config.weights or has_values(store, alias)]
    if not known and needed:
        text = f"{store.folder} has no scores: run `prefkit score {shell_quoted(store.folder)}` first."
        raise NotYet(text, "score", list(config.weights))
    evaluation_only = {a for a in known if (store.scores(a).spec() or {}).get("evaluation_only")}
    filtered = in_query(known, config.filter)
    weights = dict(config.weights) or {a: 1.0 for a in known if a not in {*evaluation_only, *filtered}}
    missing = [a for a in weights if a not in known]
    if missing:
        raise NotYet(no_scores(missing, known), "score", missing)
    forbidden = [a for a in (*weights, *filtered) if a in evaluation_only]
    if not weights and filtered and not forbidden and needed:
        raise UsageError(
            "pair: `filter` uses all scores, so none is left to pair by. Name the score to pair by in `weights`."
        )
    if forbidden or (not weights and needed):
        raise UsageError(
            f"pair: {', '.join(forbidden or known)} may only be used for evaluation. Use other scores in `weights` and "
            "`filter`."
        )
    if needed and not any(weights.values()):
        raise UsageError(NO_WEIGHT)
    unknown = [a for a in config.ties if a not in weights]
    if unknown:
        raise UsageError(
            f"pair: `ties` names {', '.join(unknown)}, which is not used for pairing; choose from {', '.join(weights)}."
        )
    return {a: w for a, w in weights.items() if w}


def has_values(store: Store, alias: str) -> bool:
    """True if the scorer succeeded for at least one candidate. Pairs need no score of a scorer that failed."""
    table = store.scores(alias)
    newest = read_part(path, ["value"]) if (path := next(reversed(table.parts()), None)) is not None else None
    if newest is not None and newest.column("value").null_count < len(newest):
        return True  # no later row replaces these, so the other parts need not be read
    return bool(table.frame(["id", "value"]).value.notna().any())


def no_scores(missing: Sequence[str], known: Sequence[str]) -> str:
    return (
        f"pair: no scores called {', '.join(missing)} exist, only {', '.join(known)}. Make them with `prefkit score`."
    )


def without_added(
    store: Store, config: Pair, name: str, weights: dict[str, float], needed: bool = True
) -> tuple[dict[str, float], list[str]]:
    """Return (default weights of the scores from which pairs/NAME was made, names of the scores that are left out).

    No score is left out if `weights` is set, or no model was trained on pairs/NAME. needed: keep at least one score.
    """
    if config.weights or not trained_on(store, name):
        return weights, []
    stored: Mapping[str, object] = weights
    with suppress(DamagedError, FileNotFoundError):
        stored = (read_json(store.pairs(name) / "spec.json").get("spec") or {}).get("scorers", weights)
    added = [alias for alias in weights if alias not in stored]
    if not stored.keys() <= weights.keys() or (needed and not stored):
        return weights, []
    return {alias: weights[alias] for alias in stored}, added


def note_added(name: str, weights: Mapping[str, float], added: Sequence[str]) -> None:
    """Note the scores that are left out of pairs/NAME because they were added after a model was trained on it."""
    if not added:
        return
    was, them = ("was", "it") if len(added) == 1 else ("were", "them")
    every = ", ".join(f"{alias}: 1" for alias in sorted({*weights, *added}))
    note(
        f"pair {name}: a model was trained on these pairs before {', '.join(added)} {was} added, so they are still made "
        f"without {them}. To pair by all scores, set pair.{name}.weights to {{{every}}} and use --redo, or another name "
        "under pair."
    )
