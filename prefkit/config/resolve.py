"""Which recipe holds: defaults < recipe file (or the run's own) < flags."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefkit import config
from prefkit.config import Recipe, reader
from prefkit.config.shipped import shipped_recipes
from prefkit.config.tree import unusable
from prefkit.errors import UsageError
from prefkit.registry import nearest, short_name
from prefkit.store import Store

SECTIONS = tuple(f.name for f in dataclasses.fields(Recipe))
USING = ("generate", "score", "compare", "pair")  # whose entries name a plug-in by `use`
NAMED = ("generate", "score", "compare", "pair", "train", "eval")
#: what `train --controls` puts beside a training; eval takes them along with it
CONTROLS = ("-sft", "-flipped")
CHOSEN = "--use"  # no section: which entries the flag --use has chosen
DEFAULT_NAME = {"generate": "base", "compare": "judge", "pair": "main", "train": "dpo", "eval": "held_out"}


def resolve(
    run: str | None,
    path: str | None,
    verb: str,
    flags: Sequence[tuple[str, str]] = (),
    names: Sequence[str] = (),
    fast: bool = False,
    sections: Mapping[str, Any] | None = None,
) -> Recipe:
    """run: a run folder (its recipe.yaml is the recipe), or the name of a recipe that comes with the package;
    path: a recipe file; flags: (dotted key, text); fast: with the recipe's `fast` section laid over it; sections: whole
    sections that take the place of the recipe's.

    A flag names a section (`model.base`, `score.align.model`), an entry of the verb's section (`align.model`), or
    a field of the verb's only (or chosen) entry (`model`). Raises UsageError.
    """
    if run and path is None and run.endswith((".yaml", ".yml")):
        raise UsageError(f"{run} names a recipe, and a run is a folder. Write `prefkit {verb} -r {run}`.")
    own = Path(run) / "recipe.yaml" if run else None
    source = path or (str(own) if own is not None and own.exists() else None)
    if source is None and run in shipped_recipes():
        source, run = str(shipped_recipes()[run]), None
    tree = reader.read_tree(source) if source else {}
    if run is not None:
        tree["run"] = run
    if fast:
        _lay_over(tree, source)
    tree |= copy.deepcopy(dict(sections or {}))
    for key, text in _use_first(flags):
        place = _absolute(tree, key, text, verb, names)
        if place is not None:
            reader.overlay(tree, place, text)
    if verb in DEFAULT_NAME and not tree.get(verb):
        tree[verb] = {(names[0] if names else DEFAULT_NAME[verb]): {}}
    tree.pop(CHOSEN, None)
    fill(tree, verb)
    found: Recipe = reader.build(Recipe, tree, "", source or "")
    if not found.run:
        raise UsageError(
            "which run? Give its folder (prefkit VERB RUN), or a recipe with `run:` (prefkit VERB -r recipe.yaml)."
        )
    return found


def fill(tree: dict[str, Any], verb: str) -> None:
    """The values that follow from the rest of the recipe and from the run folder, in every entry that does not say
    them, whatever flags are there.

    train.NAME.pairs    the only pair set, of the recipe or on disk; of several none is meant more than another
    eval.NAME.models    every training: `run` makes those of the recipe first, elsewhere those with a result count
    """
    store = _store(tree)
    pairs = _names(tree, "pair") | _on_disk(store, "pairs")
    for entry in _entries(tree, "train"):
        if "pairs" not in entry and entry.get("online") is None and len(pairs) == 1:
            entry["pairs"] = next(iter(pairs))
    trained = {name for name in _on_disk(store, "train") if store and (store.train(name) / "final").exists()}
    trained = {name for name in trained if not name.endswith(CONTROLS)}
    if verb == "run" or not trained:
        trained |= _names(tree, "train")
    for entry in _entries(tree, "eval"):
        if "models" not in entry:
            entry["models"] = sorted(trained)


def _store(tree: Mapping[str, Any]) -> Store | None:
    run = tree.get("run")
    return Store(run) if isinstance(run, str) and run and unusable(run) is None else None


def _on_disk(store: Store | None, kind: str) -> set[str]:
    return set(store.names(kind)) if store is not None else set()


def _names(tree: Mapping[str, Any], section: str) -> set[str]:
    found = tree.get(section)
    return {str(name) for name in found} if isinstance(found, Mapping) else set()


def _entries(tree: dict[str, Any], section: str) -> list[dict[str, Any]]:
    """The section's entries that can be filled; the reader says what is wrong with any other. An entry that says nothing
    (`dpo:` alone) counts as an empty one."""
    found = tree.get(section)
    if not isinstance(found, dict):
        return []
    for name in [name for name, value in found.items() if value is None]:
        found[name] = {}
    return [value for value in found.values() if isinstance(value, dict)]


def _use_first(flags: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """`--use` chooses the entry that the other flags are about, wherever it stands."""
    return sorted(flags, key=lambda flag: flag[0] != "use")


def _lay_over(tree: dict[str, Any], source: str | None) -> None:
    """The recipe's own faster variant."""
    changes = tree.pop("fast", None)
    if not isinstance(changes, Mapping):
        raise UsageError(f"--fast: {source or 'a run without a recipe'} has no section `fast:` (dotted key: value).")
    for key, value in changes.items():
        reader.place(tree, key.split("."), value)


def _absolute(tree: dict[str, Any], key: str, text: str, verb: str, names: Sequence[str]) -> str | None:
    """The flag's place in the recipe; None where it only chooses entries."""
    first = key.split(".", 1)[0]
    if first in SECTIONS and ("." in key or first in ("run", "background")):
        return key
    if verb not in NAMED:
        raise UsageError(
            f"--{key}: unknown flag.{nearest(first, SECTIONS)} A recipe key is given as --section.key value."
        )
    if not isinstance(tree.get(verb) or {}, Mapping):
        return f"{verb}.{DEFAULT_NAME.get(verb, verb)}.{key}"
    entries = tree.get(verb) or {}
    if first in entries and "." in key:
        return f"{verb}.{key}"
    chosen = list(names) or tree.get(CHOSEN) or list(entries)
    if key == "use" and verb in USING and not names:
        chosen = tree[CHOSEN] = _of_use(entries, text, verb)
        if len(chosen) > 1:
            return None
    if len(chosen) > 1:
        raise UsageError(
            f"--{key}: of which entry? Write --{chosen[0]}.{key}, or choose one with --name: {', '.join(chosen)}."
        )
    name = chosen[0] if chosen else DEFAULT_NAME.get(verb, "score")
    if not isinstance(entries.get(name), Mapping):
        tree[verb] = {**entries, name: {} if entries.get(name) is None else {"use": entries[name]}}
    return f"{verb}.{name}.{key}"


def _of_use(entries: Mapping[str, Any], use: str, verb: str) -> list[str]:
    """The entries that `--use USE` is about: those with this plug-in, else a new one, so that no other is overwritten."""
    found = [name for name, entry in entries.items() if _use_of(entry, verb) == use]
    if found or entries or verb == "score":
        return found or [short_name(use)]
    return [DEFAULT_NAME[verb]]


def _use_of(entry: Any, verb: str) -> str:
    default: str = getattr(config, verb.capitalize())().use
    return str(entry.get("use", default)) if isinstance(entry, Mapping) else str(entry or default)


def about(recipe: Recipe, verb: str, flags: Sequence[tuple[str, str]], names: Sequence[str]) -> list[str]:
    """The entries that a command is about: those of --name, else those of --use, else all ([])."""
    use = dict(flags).get("use")
    if names or use is None or verb not in USING:
        return list(names)
    return [name for name, entry in getattr(recipe, verb).items() if entry.use == use]


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
