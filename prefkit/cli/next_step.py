"""The hint after a verb: "next: COMMAND" or "next (REMARK): COMMAND". The command works as printed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefkit.config import Recipe
from prefkit.config.compatibility import first_sampler
from prefkit.output import shell_quoted
from prefkit.store import Store

EXAMPLE = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SCORERS = "prefkit plugins lists all scorers"


def after(verb: str, store: Store, recipe: Recipe) -> str:
    """Return the hint after a stage, or after `decisions`."""
    folder = shell_quoted(store.folder)
    if verb == "generate":
        return scoring(store, recipe)
    if verb in ("score", "decisions"):
        return pairing(store, recipe)
    if verb == "compare":
        return f"next: prefkit pair {folder} --use comparisons"
    if verb == "pair":
        return training(store, recipe)
    return evaluating(store, recipe) if verb == "train" else f"next: prefkit report {folder}"


def scoring(store: Store, recipe: Recipe) -> str:
    start = f"prefkit score {shell_quoted(store.folder)}"
    return f"next: {start}" if recipe.score else f"next ({SCORERS}): {start} --use jpeg"


def pairing(store: Store, recipe: Recipe) -> str:
    """Propose `pair`, `score` if nothing has been scored, or `report` if no request has two candidates."""
    if not store.names("scores"):
        return scoring(store, recipe)
    from prefkit.store.summary import candidate_index

    index = candidate_index(store)
    several = index[index.error.isna()].request_id.duplicated().any()
    return f"next: prefkit {'pair' if several else 'report'} {shell_quoted(store.folder)}"


def training(store: Store, recipe: Recipe) -> str:
    start = f"prefkit train {shell_quoted(store.folder)}"
    return f"next: {start}" if recipe.model.base else f"next (or with another model): {start} --model.base {EXAMPLE}"


def evaluating(store: Store, recipe: Recipe) -> str:
    """Propose `eval` with the settings that it lacks, or `report` if no generator of the recipe samples trained models."""
    folder = shell_quoted(store.folder)
    if recipe.generate and first_sampler(recipe) is None:
        return f"next: prefkit report {folder}"
    sampler = "" if recipe.generate else " --generate.own.steps 30"
    scorer = "" if recipe.score else " --score.size.use jpeg"
    return f"next{f' ({SCORERS})' if scorer else ''}: prefkit eval {folder}{sampler}{scorer}"


def voting(store: Store, entry: str, result: Mapping[str, Any]) -> str:
    """Propose to collect votes on the images of an eval entry without scores and votes. result: the entry's result."""
    set_name, models = next(iter(result["sets"].items()))
    folder = shell_quoted(store.folder)
    chosen = f"--models base,{next(iter(models), 'NAME')} --eval {entry} --set {set_name}"
    text = f"next: prefkit serve {folder} {chosen}, then prefkit eval {folder} again"
    return f"nobody has voted on the images of eval {entry} yet. {text}."
