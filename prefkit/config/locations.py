"""Relative paths in a recipe start at the folder of the recipe, not at the working directory.

A recipe in memory spells its paths from the working directory; RUN/recipe.yaml spells them from the run folder, so that a
project can be moved.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prefkit.config.shipped import FOLDERS
from prefkit.config.tree import Located
from prefkit.tables import SUFFIXES
from prefkit.tiny import NAME as EMBEDDED

#: text before a path, the path, and text after it: file.py:NAME, local-dir:FOLDER
PLUGIN, FOLDER = re.compile(r"()(.+\.py)(:\w+)", re.DOTALL), re.compile(r"(local-dir:)(.+)()", re.DOTALL)
#: keys whose value may be a bare name such as `photos`; elsewhere, a path must contain a slash or end in a suffix
BARE = {"base", "config", "encoder", "head", "images", "model", "processor", "real", "source", "tokenizer"}
LONGEST = 1024  # characters of a path


def anchored(tree: dict[str, Any], recipe: str | Path) -> dict[str, Any]:
    """Return the tree of a recipe file, with its relative paths spelled from the working directory.

    A relative path counts if the file exists in the recipe's folder, or if the value cannot be anything but a file. `run`
    always counts. Recipes that come with prefkit start at the working directory.
    """
    path = Path(recipe)
    if not path.is_file() or any(folder.resolve() in path.resolve().parents for folder in FOLDERS):
        return tree
    folder, stored = path.resolve().parent, path.name == "recipe.yaml" and (path.parent / "run.json").exists()
    tree = _walk(tree, "", lambda text, key: _moved(text, key, folder, Path.cwd(), strict=not stored))
    if stored:  # the recipe of a run
        tree["run"] = _spelled(folder, Path.cwd())
    elif isinstance(run := tree.get("run"), str) and run and not os.path.isabs(os.path.expanduser(run)):
        tree["run"] = _like(run, _spelled(folder / run, Path.cwd()))
    return tree


def portable(tree: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a recipe's tree with the relative paths of existing files spelled from `folder`."""
    return _walk(tree, "", lambda text, key: _moved(text, key, Path.cwd(), folder.resolve(), strict=False))


def same_file(a: str, b: str) -> bool:
    """True if two values of `use` are equal, or name the same function of the same file."""
    one, two = PLUGIN.fullmatch(a), PLUGIN.fullmatch(b)
    if one is None or two is None:
        return a == b
    return one[3] == two[3] and _absolute(one[2]) == _absolute(two[2])


def _absolute(path: str) -> str:
    return os.path.realpath(os.path.expanduser(path))


def _walk(value: Any, key: str, move: Callable[[str, str], str]) -> Any:
    """Apply move(text, key) to all strings, and to the keys of `adapters`, which are paths. key: the last of the value."""
    if key == "run" and isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        names = {k: move(k, "base") if key == "adapters" else k for k in value}
        trained = {"model"} & value.keys() if key == "generate entry" else set()  # the name of a training
        below = f"{key} entry" if key == "generate" else ""
        return {
            names[k]: v if k in trained else _walk(v, below or str(k).rpartition(".")[2], move)
            for k, v in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_walk(item, key, move) for item in value]
    return move(value, key) if isinstance(value, str) else value


def _moved(text: str, key: str, start: Path, to: Path, strict: bool) -> str:
    """Return the text with its path, if it is one that starts at `start`, spelled from `to`.

    strict: also for a file that does not exist, so that the error names the right place.
    """
    parts = PLUGIN.fullmatch(text) or FOLDER.fullmatch(text)
    before, path, after = parts.groups() if parts else ("", str(text), "")
    if not path or path == EMBEDDED or len(path) > LONGEST or "\n" in path or os.path.isabs(os.path.expanduser(path)):
        return text
    if not parts and key not in BARE and "/" not in path and not Path(path).suffix:
        return text
    certain = bool(parts) or path.startswith(("./", "../")) or (key == "source" and path.lower().endswith(SUFFIXES))
    if not strict:  # earlier versions spelled the paths in a run's recipe from the working directory
        certain = path.startswith("../") and not os.path.exists(path)
    if certain or os.path.exists(start / path):
        return _like(text, before + _spelled(start / path, to) + after)
    return text


def _spelled(path: Path, start: Path) -> str:
    """Return `path` relative to `start`; absolute if it is above the working directory."""
    target = os.path.normpath(path)
    spelled = os.path.relpath(target, start)
    return target if spelled.startswith("..") and start == Path.cwd() else spelled


def _like(text: str, new: str) -> str:
    """Return `new` with the line of `text`."""
    if not isinstance(text, Located):
        return new
    located = Located(new)
    located.line, located.quoted, located.flag = text.line, text.quoted, text.flag
    return located
