"""Offline rounds: the settings of each round, and the recipes that rounds refuse.

Round 1 is the recipe itself. Every later round starts from the model of the round before: its candidates come from this
model, its training continues it with a frozen copy as the reference (FashionDPO, arXiv 2504.12900), and its evaluation
compares the result with the model before round 1, at equal seeds.
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
    """Return the name of the training that the rounds continue. Raises UsageError if the recipe is unfit for rounds."""
    if len(recipe.train) != 1:
        found = ", ".join(recipe.train) or "none"
        raise UsageError(
            f"rounds is {recipe.rounds}, but each round continues the model of the round before, so `train` must have "
            f"exactly one entry (found: {found}). Give every training a recipe of its own; train.NAME.controls adds "
            "controls to every round."
        )
    [(name, entry)] = recipe.train.items()
    objective = plugin_options.make(
        "objective", entry.objective.use, entry.objective.options, f"train.{name}.objective"
    )
    compatibility.check("rounds", name, recipe, entry, objective)
    return name


def check_folder(recipe: Recipe, store: Store) -> None:
    """Raise UsageError if the run folder has tables of its own, made without rounds."""
    kinds = [kind for kind in ("candidates", "scores", "pairs", "train", "eval") if store.names(kind)]
    if kinds:
        raise UsageError(
            f"rounds is {recipe.rounds}, but {store.folder} holds a run without rounds (its {kinds[0]}). Choose another "
            "folder for `run`, or set `rounds: 1`."
        )


def check_stage(recipe: Recipe, store: Store, verb: str) -> None:
    """Raise UsageError if a stage is to run in the folder of all rounds instead of the folder of one round."""
    if recipe.rounds == 1 and not store.rounds():
        return
    folder = shell_quoted(store.folder)
    which = shell_quoted(folder_of(recipe, 1))
    raise UsageError(
        f"{folder} is a run of several rounds, and each round has a run folder of its own. Use `prefkit run` with the "
        f"recipe key `rounds` above 1 for all of them, or name one round, as in `prefkit {verb} {which}`."
    )


def folder_of(recipe: Recipe, number: int) -> Path:
    return Path(recipe.run) / "rounds" / str(number)


def recipe_of(recipe: Recipe, number: int, start: Model | None = None) -> Recipe:
    """Return the recipe of one round, a complete recipe without rounds.

    start: the model of the round before; None for round 1.
    """
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
    """Return the seed of the candidates of a round after the first, a function of the recipe's seed and the round."""
    return int(digest("round", seed, number, length=8), 16)


def _continued(entry: Train) -> Train:
    """Return a training that continues the adapter of the round before, with its alpha and targets."""
    return (
        entry if entry.lora is None else replace(entry, lora=replace(entry.lora, resume=True, alpha=None, targets=[]))
    )


def _against_start(recipe: Recipe, entry: Eval) -> Eval:
    """Return an evaluation against the base and with the seed of the recipe."""
    generator = recipe.generate.get(entry.generator or compatibility.first_sampler(recipe) or "")
    seed = generator.seed if generator is not None and entry.seed is None else entry.seed
    return replace(entry, base=recipe.model if entry.base is None else entry.base, seed=seed)
