"""Offline rounds: build each round's recipe, and refuse recipes that do not allow rounds.

Round 1 is the recipe itself. Each later round generates candidates with the previous round's model, trains this model
further with a frozen copy as the reference (FashionDPO, arXiv 2504.12900), and compares the result with the model
before round 1, at equal seeds.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from prefkit.config import Eval, Model, Recipe, Train, compatibility, plugin_options
from prefkit.errors import UsageError
from prefkit.output import shell_quoted
from prefkit.store import Store
from prefkit.types import digest


def check(recipe: Recipe) -> str:
    """Return the name of the recipe's only training. Raises UsageError if the recipe does not allow rounds."""
    if len(recipe.train) != 1:
        found = ", ".join(recipe.train) or "none"
        raise UsageError(
            f"rounds is {recipe.rounds}, but each round trains the previous round's model further, so `train` must "
            f"have exactly one entry (found: {found}). Give every training a recipe of its own. For controls, set "
            "train.NAME.controls."
        )
    [(name, entry)] = recipe.train.items()
    objective = plugin_options.make(
        "objective", entry.objective.use, entry.objective.options, f"train.{name}.objective"
    )
    compatibility.check("rounds", name, recipe, entry, objective)
    return name


def check_folder(recipe: Recipe, store: Store) -> None:
    """Raise UsageError if the run folder already contains a run without rounds."""
    kinds = [kind for kind in ("candidates", "scores", "pairs", "train", "eval") if store.names(kind)]
    if kinds:
        raise UsageError(
            f"rounds is {recipe.rounds}, but {store.folder} already contains a run without rounds (it has {kinds[0]}). "
            "Set `run` to another folder, or set `rounds: 1`."
        )


def check_stage(recipe: Recipe, store: Store, verb: str) -> None:
    """Raise UsageError if the run folder is that of several rounds: a stage runs in the folder of one round."""
    if recipe.rounds == 1 and not store.rounds():
        return
    folder = shell_quoted(store.folder)
    which = shell_quoted(folder_of(recipe, 1))
    raise UsageError(
        f"{folder} is a run of several rounds, each in a run folder of its own. For all rounds, use `prefkit run` with "
        f"`rounds` above 1 in the recipe; for one round, give its folder, as in `prefkit {verb} {which}`."
    )


def folder_of(recipe: Recipe, number: int) -> Path:
    return Path(recipe.run) / "rounds" / str(number)


def recipe_of(recipe: Recipe, number: int, start: Model | None = None) -> Recipe:
    """Return the recipe of one round, in which `rounds` is 1. start: the previous round's model, None for round 1."""
    single = replace(recipe, run=str(folder_of(recipe, number)), rounds=1, about="", fast={})
    if start is None:
        return single
    return replace(
        single,
        model=start,
        generate={name: replace(entry, seed=seed_of(entry.seed, number)) for name, entry in recipe.generate.items()},
        train={name: _continued(entry) for name, entry in recipe.train.items()},
        eval={name: _against_start(recipe, entry) for name, entry in recipe.eval.items()},
    )


def seed_of(seed: int, number: int) -> int:
    """Return the generator seed for a round after the first, derived from the recipe's seed and the round's number."""
    return int(digest("round", seed, number, length=8), 16)


def _continued(entry: Train) -> Train:
    """Return settings that train the previous round's adapter further, with its alpha and targets."""
    return (
        entry if entry.lora is None else replace(entry, lora=replace(entry.lora, resume=True, alpha=None, targets=[]))
    )


def _against_start(recipe: Recipe, entry: Eval) -> Eval:
    """Return settings that evaluate against the recipe's base model, with the recipe's seed."""
    generator = recipe.generate.get(entry.generator or compatibility.first_sampler(recipe) or "")
    seed = generator.seed if generator is not None and entry.seed is None else entry.seed
    return replace(entry, base=recipe.model if entry.base is None else entry.base, seed=seed)
