"""Read YAML recipes and flags into dataclasses. Errors name file:line, and suggest the most similar known key.

The type of a field decides how a value is read: `1e-4` is a number in a number field, `no` a string in a string field.
"""

from __future__ import annotations

import dataclasses
import math
import os
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from prefkit.config import Recipe, bounds, locations, plain
from prefkit.config.tree import Located, overlay, place, tree_of_flags, unusable
from prefkit.config.tree import read_tree as tree_of
from prefkit.errors import RecipeError, UsageError
from prefkit.images import Background
from prefkit.registry import Passed, nearest
from prefkit.store.files import unusable_name

__all__ = ["Located", "build", "dump", "field_names", "overlay", "place", "read", "read_tree", "tree_of_flags"]

MOST_UNTYPED = 2**63  # larger numbers do not fit into tensors
PLUGIN_OF = {"Score": "scorer", "Compare": "scorer", "Pair": "strategy", "Choice": "objective"}
#: key that other tools use -> prefkit's key, to suggest if a recipe contains the former
ALSO_CALLED = {
    "lr": "learning_rate",
    "strategy": "use",
    "scorer": "use",
    "judge": "use",
    "beta": "objective.beta",
    "loss": "objective.use",
    "rank": "lora.rank",
    "train_text_encoder": "lora.text_encoder",
    "text_encoder_lr": "lora.text_encoder_learning_rate",
    "gradient_accumulation_steps": "accumulation",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "max_train_steps": "steps",
    "train_batch_size": "batch_size",
    "mixed_precision": "precision",
    "lr_scheduler": "schedule",
}
TYPES: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


def read(path: str | Path) -> Recipe:
    """Read a recipe file. Raises RecipeError with file:line, UsageError if the file cannot be read."""
    return build(Recipe, read_tree(path), "", str(path))


def use_background(run: Path) -> None:
    """Set the colour behind transparent images to that of the run's recipe.yaml, or to white if there is none."""
    path = run / "recipe.yaml"
    set_background(str(read_tree(path).get("background") or "white") if path.exists() else "white")


def set_background(colour: str) -> None:
    """Set the colour behind transparent images. Raises UsageError if it is not a colour."""
    try:
        Background.set(colour)
    except ValueError as error:
        text = f"background: {colour[:40]!r} is not a colour. Write a CSS colour, such as white or '#f5f5dc'."
        raise UsageError(text) from error


def read_tree(path: str | Path) -> dict[str, Any]:
    """Read a file as nested dicts and lists of strings that know their line. Raises UsageError, RecipeError."""
    tree = tree_of(path)
    if tree is None:
        raise RecipeError(f"{path}:1: a recipe is a mapping of sections ({', '.join(field_names(Recipe))}).")
    return tree


def build(kind: Any, tree: Any, where: str, path: str = "") -> Any:
    """Convert a tree to `kind`: a dataclass, dict[str, X], list[X], X | None, or a scalar type.

    where, path: dotted key of the tree and recipe file, for errors. Raises UsageError, RecipeError.
    """
    origin = typing.get_origin(kind)
    if kind is Any:
        return _plain_scalars(tree)
    if origin in (typing.Union, types.UnionType):
        return _optional(kind, tree, where, path)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, tree, where, path)
    if origin is dict:
        if not isinstance(tree, Mapping):
            raise _error(path, where, tree, "must be a mapping (name: value)")
        inner = typing.get_args(kind)[1]
        if dataclasses.is_dataclass(inner):
            _check_entries(inner, tree, where, path)
        return {str(k): build(inner, v, _join(where, k), path) for k, v in tree.items()}
    if origin in (list, tuple):
        if tree is None:
            text = "must be a list. Leave it out for the default, or write [] for an empty one"
            raise _error(path, where, tree, text)
        items = tree if isinstance(tree, (list, tuple)) else [tree]
        inner = typing.get_args(kind)[0]
        built = [build(inner, v, f"{where}[{i}]", path) for i, v in enumerate(items)]
        return built if origin is list else tuple(built)
    if origin is typing.Literal:
        choices = typing.get_args(kind)
        if tree not in choices:
            text = f"must be one of {', '.join(map(str, choices))}.{nearest(str(tree), choices)}"
            raise _error(path, where, tree, text)
        return next(choice for choice in choices if choice == tree)
    return _scalar(kind, tree, where, path)


def _check_entries(kind: Any, tree: Mapping[str, Any], where: str, path: str) -> None:
    """Check that a section maps names to entries, and that the names can be folder names."""
    for name, value in tree.items():
        if name in field_names(kind) and not isinstance(value, Mapping) and not dataclasses.is_dataclass(value):
            last, brief = where.rpartition(".")[2], f"{name}: {str(value)[:40]}"
            text = f"is a key of an entry, and every entry needs a name: write {last}: {{own: {{{brief}}}}}"
            raise _error(path, _join(where, name), name, text)
        if bad := unusable_name(str(name)):
            raise _error(path, _join(where, name), name, bad)


def _optional(kind: Any, tree: Any, where: str, path: str) -> Any:
    choices = [k for k in typing.get_args(kind) if k is not type(None)]
    if tree is None or (isinstance(tree, Located) and not tree.quoted and tree == "none"):
        return None
    return build(choices[0], tree, where, path)


def _dataclass(kind: Any, tree: Any, where: str, path: str, base: Any = None) -> Any:
    """Convert a tree to the dataclass `kind`. base: provides the values of missing keys; default `kind()`."""
    if dataclasses.is_dataclass(tree):
        return tree
    known = typing.get_type_hints(kind)
    base = kind() if base is None else base
    takes_options = kind.__name__ in PLUGIN_OF
    if takes_options and isinstance(tree, str):
        tree = {"use": tree}
    if not isinstance(tree, Mapping):
        raise _error(path, where, tree, f"must be a mapping with {', '.join(known)}")
    values: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for key, value in tree.items():
        if key in known and not (takes_options and key == "options"):
            values[str(key)] = _field(kind, known[key], getattr(base, key), value, _join(where, key), path)
        elif takes_options and key == "options" and isinstance(value, Mapping):
            extra |= value
        elif takes_options:
            extra[key] = value
        else:
            names = f"unknown key.{_suggestion(str(key), list(known))} Known here: {', '.join(known)}"
            text = names if known else "unknown key; no options exist here"
            raise _error(path, _join(where, key), key, text)
    if takes_options:
        values["options"] = _plugin_options(kind, tree.get("use", base.use), extra, where, path)
    return dataclasses.replace(base, **values)


def _field(kind: Any, of_type: Any, default: Any, value: Any, where: str, path: str) -> Any:
    """Convert the value of one key. If the value is a section, missing keys take their values from `default`."""
    if dataclasses.is_dataclass(default) and isinstance(value, Mapping):
        return _dataclass(type(default), value, where, path, default)
    built = build(of_type, value, where, path)
    if error := bounds.broken(kind, where.rpartition(".")[2], built):
        raise _error(path, where, value, error, between="")
    return built


def _suggestion(key: str, known: list[str]) -> str:
    """Return " Did you mean ...?" for an unknown key, or ""."""
    other = ALSO_CALLED.get(key, "")
    return f" Did you mean {other!r}?" if other.partition(".")[0] in known else nearest(key, known)


def _plugin_options(kind: Any, use: str, tree: Mapping[str, Any], where: str, path: str) -> dict[str, Any]:
    """Convert a plug-in's options to the types in its `Options`. tree: the keys next to `use`."""
    from prefkit import registry

    if not use:
        raise _error(path, _join(where, "use"), None, "is not set. Name a plug-in; `prefkit plugins` lists them")
    try:
        registry.check_name(PLUGIN_OF[kind.__name__], use)
        if not tree:
            return {}
        plugin = registry.load(PLUGIN_OF[kind.__name__], use)
    except UsageError as error:
        raise _error(path, _join(where, "use"), use, str(error).rstrip(".")) from error
    if not hasattr(plugin, "Options"):
        key = next(iter(tree))
        text = f"unknown key; {use} takes no options. Known here: {', '.join(field_names(kind))}"
        raise _error(path, _join(where, key), key, text)
    unknown = [key for key in tree if key not in field_names(plugin.Options)]
    if unknown:
        names = [n for n in [*field_names(plugin.Options), *field_names(kind)] if n != "options"]
        text = f"unknown key.{_suggestion(unknown[0], names)} Known here: {', '.join(names)}"
        raise _error(path, _join(where, unknown[0]), unknown[0], text)
    built = build(plugin.Options, tree, where, path)
    return {str(key): plain(getattr(built, key)) for key in tree}


def _scalar(kind: Any, tree: Any, where: str, path: str) -> Any:
    expected = f"must be {TYPES.get(kind, kind)}"
    if isinstance(tree, Mapping) and kind is str:
        raise _error(path, where, tree, f"{expected}, not a mapping. Put quotes around text with {{...}} or ': '")
    if isinstance(tree, (Mapping, list)) or tree is None:
        raise _error(path, where, tree, expected)
    if kind is str:
        if not isinstance(tree, (str, bool, int, float, os.PathLike)):
            raise _error(path, where, tree, f"{expected}, not a {type(tree).__name__}")
        if bad := unusable(str(tree)):
            raise _error(path, where, tree, f"contains {bad}; remove it")
        return tree if isinstance(tree, Passed) else str(tree)
    if kind is bool and str(tree).lower() in ("true", "false"):
        return str(tree).lower() == "true"
    try:
        if kind is bool or isinstance(tree, bool):
            raise ValueError(tree)
        number = int(str(tree).replace("_", "")) if kind is int else kind(tree)
    except (TypeError, ValueError) as error:
        raise _error(path, where, tree, f"{expected}, not {str(tree) or 'an empty string'}") from error
    if kind is float and not math.isfinite(number):
        raise _error(path, where, tree, f"must be a finite number, not {tree!s}")
    return number


def _plain_scalars(tree: Any) -> Any:
    """Convert the strings in a tree to numbers (also 1e-4), true, false and null, as YAML 1.2 does."""
    if isinstance(tree, Mapping):
        return {str(k): _plain_scalars(v) for k, v in tree.items()}
    if isinstance(tree, list):
        return [_plain_scalars(v) for v in tree]
    if not isinstance(tree, Located):
        return tree
    if tree.quoted:
        return str(tree)
    words = {"true": True, "false": False, "null": None}
    if tree.lower() in words:
        return words[tree.lower()]
    for kind in (int, float):
        try:
            number = kind(tree)
        except ValueError:
            continue
        return number if abs(number) <= MOST_UNTYPED else str(tree)  # nan and inf stay strings
    return str(tree)


def field_names(kind: Any) -> list[str]:
    return [f.name for f in dataclasses.fields(kind)]


def _join(where: str, key: str) -> str:
    """Return "where.key" with the line or flag of `key`."""
    joined = Located(f"{where}.{key}" if where else key)
    if isinstance(key, Located):
        joined.line, joined.flag = key.line, key.flag
    return joined


def _error(path: str, where: str, at: Any, text: str, between: str = ":") -> UsageError:
    """Build the error for the value or key `at`. If `at` has no line or flag (null), those of `where` are used."""
    text = f"{where or 'recipe'}{between} {text.rstrip('.')}."
    place = at if isinstance(at, Located) else where
    if isinstance(place, Located) and place.flag:
        return UsageError(f"--{text}")
    inner = at if isinstance(at, (Mapping, list)) else [at]
    lines = [item.line for item in inner if isinstance(item, Located)]
    line = min(lines, default=0) or getattr(where, "line", 0)
    prefix = f"{path}:{line}: " if path and line else f"{path}: " if path else ""
    return (RecipeError if path else UsageError)(f"{prefix}{text}")


def dump(recipe: Recipe, folder: Path | None = None) -> str:
    """Write a resolved recipe as YAML; reading it gives the same recipe. folder: of the file, where its paths start."""
    tree = tree_of_recipe(recipe)
    tree = tree if folder is None else locations.portable(tree, folder)
    return yaml.dump(tree, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)


class Dumper(yaml.SafeDumper):
    """Writes a plug-in that Python code passed as its name."""


Dumper.add_representer(Passed, lambda dumper, name: dumper.represent_str(str(name)))


def tree_of_recipe(value: Any) -> Any:
    """Return `plain(value)`, with a plug-in's options next to `use` as in a recipe."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        tree = {f.name: tree_of_recipe(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return tree | tree.pop("options") if type(value).__name__ in PLUGIN_OF else tree
    if isinstance(value, Mapping):
        return {k: tree_of_recipe(v) for k, v in value.items()}
    return [tree_of_recipe(v) for v in value] if isinstance(value, (list, tuple)) else value
