"""Which recipe holds: defaults < recipe file (or the run's own) < flags."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefkit import recipe as reader
from prefkit.config import Recipe
from prefkit.errors import UsageError
from prefkit.registry import nearest, short_name
from prefkit.shipped import shipped_recipes

SECTIONS = tuple(f.name for f in dataclasses.fields(Recipe))
NAMED = ("generate", "score", "compare", "pair", "train", "eval")
DEFAULT_NAME = {"generate": "base", "compare": "judge", "pair": "main", "train": "dpo", "eval": "held_out"}


def resolve(
    run: str | None,
    path: str | None,
    verb: str,
    flags: Sequence[tuple[str, str]] = (),
    names: Sequence[str] = (),
    fast: bool = False,
) -> Recipe:
    """run: a run folder (its recipe.yaml is the recipe), or the name of a recipe that comes with the package;
    path: a recipe file; flags: (dotted key, text); fast: with the recipe's `fast` section laid over it.

    A flag names a section (`model.base`, `score.align.model`), an entry of the verb's section (`align.model`), or
    a field of the verb's only (or chosen) entry (`model`). Raises UsageError.
    """
    own = Path(run) / "recipe.yaml" if run else None
    source = path or (str(own) if own is not None and own.exists() else None)
    if source is None and run in shipped_recipes():
        source, run = str(shipped_recipes()[run]), None
    tree = reader.read_tree(source) if source else {}
    if run is not None:
        tree["run"] = run
    if fast:
        _lay_over(tree, source)
    for key, text in flags:
        reader.overlay(tree, _absolute(tree, key, text, verb, names), text)
    if verb in DEFAULT_NAME and not tree.get(verb):
        tree[verb] = {(names[0] if names else DEFAULT_NAME[verb]): {}}
        if verb == "train" and len(tree.get("pair") or {}) == 1:
            tree[verb] = {name: {"pairs": next(iter(tree["pair"]))} for name in tree[verb]}
    found: Recipe = reader.build(Recipe, tree, "", source or "")
    if not found.run:
        raise UsageError(
            "which run? Give its folder (prefkit VERB RUN), or a recipe with `run:` (prefkit VERB -r recipe.yaml)."
        )
    return found


def _lay_over(tree: dict[str, Any], source: str | None) -> None:
    """The recipe's own faster variant."""
    changes = tree.pop("fast", None)
    if not isinstance(changes, Mapping):
        raise UsageError(f"--fast: {source or 'a run without a recipe'} has no section `fast:` (dotted key: value).")
    for key, value in changes.items():
        reader.place(tree, key.split("."), value)


def _absolute(tree: dict[str, Any], key: str, text: str, verb: str, names: Sequence[str]) -> str:
    """The flag's place in the recipe."""
    first = key.split(".", 1)[0]
    entries = tree.get(verb)
    entries = entries if isinstance(entries, Mapping) else {}
    if first in SECTIONS and ("." in key or first in ("run", "background")):
        return key
    if verb not in NAMED:
        raise UsageError(
            f"--{key}: unknown flag.{nearest(first, SECTIONS)} A recipe key is given as --section.key value."
        )
    if first in entries and "." in key:
        return f"{verb}.{key}"
    chosen = list(names) or list(entries)
    if len(chosen) > 1:
        raise UsageError(
            f"--{key}: of which entry? Write --{chosen[0]}.{key}, or choose one with --name: {', '.join(chosen)}."
        )
    default = short_name(text) if verb == "score" and key == "use" else DEFAULT_NAME.get(verb, "score")
    name = chosen[0] if chosen else default
    tree.setdefault(verb, {}).setdefault(name, {})
    return f"{verb}.{name}.{key}"


def chosen_names(recipe: Recipe, verb: str, names: Sequence[str]) -> list[str]:
    """The entries of the verb's section to work on, in recipe order. Raises UsageError."""
    known: Mapping[str, Any] = getattr(recipe, verb)
    for name in names:
        if name not in known:
            raise UsageError(
                f"{verb}: no entry is called {name!r}.{nearest(name, list(known))} There are: {', '.join(known) or 'none'}."
            )
    if not known:
        what = {"score": "name a scorer, as in --use clip"}.get(verb, f"add a section `{verb}:` to the recipe")
        raise UsageError(f"{verb}: the recipe says nothing about it; {what}.")
    return [name for name in known if not names or name in names]
