"""Resolve a recipe: flags override the recipe file (or the run's recipe.yaml), which overrides defaults."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefkit import config, registry
from prefkit.config import Recipe, locations, reader
from prefkit.config.arguments import NAMED, USING, merged, with_plugins
from prefkit.config.locations import same_file
from prefkit.config.shipped import shipped_recipes
from prefkit.config.tree import unusable
from prefkit.errors import PrefkitError, UsageError
from prefkit.registry import nearest, short_name
from prefkit.store import Store

SECTIONS = tuple(f.name for f in dataclasses.fields(Recipe))
#: verb -> flags that name the plug-in of an entry, and so select the entries with this plug-in
SELECTS = dict.fromkeys(USING, ("use",)) | {"train": ("objective.use", "objective")}
CHOSEN = "--use"  # temporary key in the tree for the names of the entries that the flag --use selects
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
    """Read a recipe and apply flags to it.

    run: a run folder, whose recipe.yaml is read, or the name of a shipped recipe; path: a recipe file; verb: the
    command; flags: (dotted key, text); names: selected entries of the verb's section; fast: apply the recipe's `fast`
    section; sections: settings in Python, merged into the recipe (see `arguments.merged`).

    The key of a flag is a full key (`model.base`, `score.align.model`), a key in the verb's section (`align.model`), a
    field of the section's only or selected entry (`model`), or an option in a block of this entry (`beta`). Raises
    UsageError.
    """
    if run and path is None and run.endswith((".yaml", ".yml")):
        raise UsageError(f"{run} is a recipe, not a run folder. Write `prefkit {verb} -r {run}`.")
    saved = Path(run) / "recipe.yaml" if run else None
    source = path or (str(saved) if saved is not None and saved.exists() else None)
    if source is None and run in shipped_recipes():
        source, run = str(shipped_recipes()[run]), None
    tree = locations.anchored(reader.read_tree(source), source) if source else {}
    if run is not None:
        tree["run"] = run
    if fast:
        _apply_fast(tree, source)
    stored, tree = tree, merged(tree, sections or {})
    for key, text in _plugins_first(flags):
        place = _absolute(tree, _as_named(tree, key), text, verb, names)
        if place is not None:
            reader.overlay(tree, place, text)
    if verb in DEFAULT_NAME and not tree.get(verb):
        tree[verb] = {(names[0] if names else DEFAULT_NAME[verb]): {}}
    tree.pop(CHOSEN, None)
    fill(tree)
    try:
        recipe: Recipe = reader.build(Recipe, tree, "", "" if sections else source or "")
    except UsageError:
        if sections:  # report a mistake in the file with its line
            reader.build(Recipe, stored, "", source or "")
        raise
    if not recipe.run:
        raise UsageError(
            "no run is given. Give a run folder (prefkit VERB RUN), or a recipe with the key `run` (prefkit VERB -r "
            "recipe.yaml)."
        )
    return recipe


def with_options(recipe: Recipe, verb: str, names: Sequence[str], options: Mapping[str, Any]) -> Recipe:
    """Return the recipe with settings of the verb's selected entry, as in `run.generate(n=4)`. Raises UsageError."""
    tree = reader.tree_of_recipe(recipe)
    for key, value in sorted(with_plugins(options).items(), key=lambda option: option[0] not in ("use", "objective")):
        place = _absolute(tree, key, str(value), verb, names)
        if place is not None:
            reader.place(tree, place.split("."), value)
    tree.pop(CHOSEN, None)
    fill(tree)
    resolved: Recipe = reader.build(Recipe, tree, "")
    return resolved


def fill(tree: dict[str, Any]) -> None:
    """Fill in missing values that follow from the rest of the recipe and from the run folder.

    train.NAME.pairs    the only pair set in the recipe and on disk; stays unset if there are several
    """
    run = tree.get("run")
    store = Store(run) if isinstance(run, str) and run and unusable(run) is None else None
    pairs = _names(tree, "pair") | set(store.names("pairs") if store is not None else ())
    for entry in _entries(tree, "train"):
        if "pairs" not in entry and entry.get("online") is None and len(pairs) == 1:
            entry["pairs"] = next(iter(pairs))


def _names(tree: Mapping[str, Any], section: str) -> set[str]:
    entries = tree.get(section)
    return {str(name) for name in entries} if isinstance(entries, Mapping) else set()


def _entries(tree: dict[str, Any], section: str) -> list[dict[str, Any]]:
    """Return the section's entries that are mappings; an empty entry (`dpo:`) becomes {}."""
    entries = tree.get(section)
    if not isinstance(entries, dict):
        return []
    for name in [name for name, value in entries.items() if value is None]:
        entries[name] = {}
    return [value for value in entries.values() if isinstance(value, dict)]


def _plugins_first(flags: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Sort flags: first those that select entries; then flags that name plug-ins; then all others."""
    selects = {key for keys in SELECTS.values() for key in keys}
    return sorted(
        flags, key=lambda flag: (flag[0] not in selects, flag[0].rpartition(".")[2] not in ("use", "objective"))
    )


def _apply_fast(tree: dict[str, Any], source: str | None) -> None:
    changes = tree.pop("fast", None)
    if not isinstance(changes, Mapping):
        raise UsageError(
            f"--fast: {source or 'a run without a recipe'} has no section `fast:`. Add it, with `dotted.key: value`."
        )
    for key, value in changes.items():
        reader.place(tree, key.split("."), value)


def _as_named(tree: Mapping[str, Any], key: str) -> str:
    """Return a flag's key with entry names as in the recipe: in flags, dashes arrive as underscores."""
    entries = {str(name) for section in tree.values() if isinstance(section, Mapping) for name in section}
    dashed = {name.replace("-", "_"): name for name in entries if "-" in name}
    return ".".join(part if part in entries else dashed.get(part, part) for part in key.split("."))


def _absolute(tree: dict[str, Any], key: str, text: str, verb: str, names: Sequence[str]) -> str | None:
    """Return the full recipe key that a flag sets; None if the flag only selects entries."""
    first, _, rest = key.partition(".")
    if first in SECTIONS and (rest or first in ("run", "rounds", "background")):
        return key
    if verb not in NAMED:
        raise UsageError(f"--{key}: unknown flag.{nearest(first, SECTIONS)} Write a recipe key as --section.key VALUE.")
    entries = tree.get(verb) or {}
    if not isinstance(entries, Mapping):
        return f"{verb}.{DEFAULT_NAME.get(verb, verb)}.{key}"
    if first in entries and rest:
        return f"{verb}.{first}.{_in_block(verb, entries[first], rest)}"
    chosen = list(names) or tree.get(CHOSEN) or list(entries)
    if key in SELECTS.get(verb, ()) and not names:
        chosen = tree[CHOSEN] = _of_use(entries, text, verb)
        if len(chosen) > 1:
            return None
    if len(chosen) > 1:
        known = _known_keys(verb, [entries.get(name) for name in chosen])
        if known and first not in known:
            raise UsageError(f"--{key}: unknown key.{nearest(first, known)} See prefkit {verb} --help.")
        raise UsageError(
            f"--{key}: {verb} has several entries. Write --{chosen[0]}.{key}, or choose one with --name: "
            f"{', '.join(chosen)}."
        )
    name = chosen[0] if chosen else DEFAULT_NAME.get(verb, "score")
    return f"{verb}.{name}.{_in_block(verb, entries.get(name), key)}"


def _known_keys(verb: str, entries: Sequence[Any]) -> list[str]:
    """Return the keys of the stage's entries, of their blocks and of their plug-ins; [] if a plug-in cannot be loaded."""
    kind = getattr(config, verb.capitalize())
    known = dict.fromkeys(reader.field_names(kind))
    try:
        for entry in entries:
            for options in blocks(kind, entry if isinstance(entry, Mapping) else {}).values():
                known |= dict.fromkeys(reader.field_names(options))
    except PrefkitError:  # the reader will report it
        return []
    return list(known)


def _in_block(verb: str, entry: Any, key: str) -> str:
    """Add the block (section in an entry) to a key: `beta` -> `objective.beta`. Raises UsageError if ambiguous."""
    kind, first = getattr(config, verb.capitalize()), key.partition(".")[0]
    if verb in USING or first in reader.field_names(kind):
        return key
    try:
        options = blocks(kind, entry if isinstance(entry, Mapping) else {})
    except PrefkitError:  # the reader will report it
        return key
    places = [f"{block}.{key}" for block, of_block in options.items() if first in reader.field_names(of_block)]
    if len(places) > 1:
        raise UsageError(f"--{key}: several settings have this name. Write one of --{', --'.join(places)}.")
    return places[0] if places else key


def blocks(kind: type, entry: Mapping[str, Any]) -> dict[str, type]:
    """Return {block: dataclass of its options} of an entry; the key "" holds the options of its plug-in."""
    default: Any = kind()
    options: dict[str, type] = {}
    if kind.__name__ in reader.PLUGIN_OF and entry.get("use", default.use):
        plugin = registry.load(reader.PLUGIN_OF[kind.__name__], entry.get("use", default.use))
        options |= {"": plugin.Options} if hasattr(plugin, "Options") else {}
    for name, hint in typing.get_type_hints(kind).items():
        choices = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        block: Any = next((choice for choice in choices if dataclasses.is_dataclass(choice)), None)
        value = entry.get(name, getattr(default, name))
        if block is None or value in (None, "none"):
            continue
        if block.__name__ in reader.PLUGIN_OF:
            use = _use_of(config.plain(value), getattr(default, name).use)
            block = getattr(registry.load(reader.PLUGIN_OF[block.__name__], use), "Options", None)
        if block is not None:
            options[name] = block
    return options


def _of_use(entries: Mapping[str, Any], use: str, verb: str) -> list[str]:
    """Return the names of the entries that use this plug-in or, if there are none, the name of a new entry.

    Raises UsageError if that name belongs to an entry with another plug-in.
    """
    matches = [name for name, entry in entries.items() if same_file(_plugin_of(entry, verb), use)]
    if matches:
        return matches
    name = short_name(use) if verb in ("score", "pair", "train") or entries else DEFAULT_NAME[verb]
    if name in entries:
        raise UsageError(
            f"--{SELECTS[verb][0]} {use}: the entry {name} of {verb} uses {_plugin_of(entries[name], verb)}. Name the new entry "
            f"with --name, or change this one with --name {name}."
        )
    return [name]


def _plugin_of(entry: Any, verb: str) -> str:
    """Return the plug-in of an entry, which is a dataclass, a mapping, or the name of the plug-in."""
    default = getattr(config, verb.capitalize())()
    if verb == "train":
        inner = entry.get("objective") if isinstance(entry, Mapping) else getattr(entry, "objective", None)
        return _use_of(inner, default.objective.use)
    return _use_of(entry, default.use)


def _use_of(entry: Any, default: str) -> str:
    return str(entry.get("use", default) if isinstance(entry, Mapping) else getattr(entry, "use", entry) or default)


def about(recipe: Recipe, verb: str, flags: Sequence[tuple[str, str]], names: Sequence[str]) -> list[str]:
    """Return the entries that a command selects by --name or, without it, by its plug-in (--use); [] for all."""
    use = next((text for key, text in flags if key in SELECTS.get(verb, ())), None)
    if names or use is None:
        return list(names)
    return [name for name, entry in getattr(recipe, verb).items() if same_file(_plugin_of(entry, verb), use)]


def chosen_names(recipe: Recipe, verb: str, names: Sequence[str]) -> list[str]:
    """Return the selected entries of the verb's section (no names: all), in recipe order. Raises UsageError."""
    entries: Mapping[str, Any] = getattr(recipe, verb)
    for name in names:
        if name not in entries:
            known = ", ".join(entries) or "none"
            raise UsageError(f"{verb}: no entry is called {name!r}.{nearest(name, list(entries))} Entries: {known}.")
    if not entries:
        fix = {"score": "name a scorer, as in --use clip"}.get(verb, f"add a section `{verb}:` to the recipe")
        raise UsageError(f"{verb}: the recipe has no entry; {fix}.")
    return [name for name in entries if not names or name in names]
