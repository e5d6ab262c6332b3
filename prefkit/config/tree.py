"""Parse the YAML in recipe files and flags into nested dicts and lists of strings that know their line.

Refuses recursive or exploding anchors, deep nesting, huge files, NUL and lone surrogates.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from prefkit.errors import RecipeError, UsageError

MOST_BYTES = 256_000
MOST_DEPTH = 24
MOST_NODES = 50_000  # with anchors expanded
MERGE = "tag:yaml.org,2002:merge"  # the key <<
#: libyaml's loader if PyYAML was built with it, because it is twenty times faster
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Located(str):
    """A key or scalar, as text, with its line in the recipe or the flag that it comes from."""

    line: int = 0
    quoted: bool = False
    flag: str = ""


@dataclass
class Source:
    """The origin of a text, for messages: a file, or a flag such as --pair.main.k."""

    path: str = ""
    flag: str = ""
    nodes: int = 0
    #: the collections that contain the current node, to find references of a collection to itself
    above: list[Any] = field(default_factory=list)

    def error(self, line: int, text: str) -> UsageError:
        return UsageError(f"{self.flag}: {text}") if self.flag else RecipeError(f"{self.path}:{line}: {text}")


def read_tree(path: str | Path) -> dict[str, Any] | None:
    """Read a YAML file: {} if it is empty, None if it is not a mapping. Raises UsageError, RecipeError."""
    source = Source(path=str(path))
    try:
        text = _bytes(path).decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"the recipe {path} could not be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}).") from error
    tree = parse(text, source)
    return {} if tree is None else tree if isinstance(tree, dict) else None


def parse(text: str, source: Source) -> Any:
    """Parse a text with one YAML document into dicts, lists, Located and None. Raises UsageError, RecipeError."""
    try:
        _check_events(text, source)
        node = yaml.compose(text, Loader=LOADER)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        problem = ", ".join(filter(None, [error.context, error.problem]))
        raise source.error(line, f"not valid YAML: {problem}.") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # PyYAML's chr() of an impossible \U escape
        raise source.error(1, f"not valid YAML: {' '.join(str(error).split())}.") from error
    return None if node is None else _convert(node, source)


def _bytes(path: str | Path) -> bytes:
    """Read a recipe file, or a pipe that the shell opened. Raises OSError, UsageError."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise UsageError(f"the recipe {path} is a folder. Pass a YAML file to -r; to use a run folder, leave out -r.")
    piped = stat.S_ISFIFO(mode) and str(path).startswith(("/dev/", "/proc/"))
    if not (stat.S_ISREG(mode) or piped):
        raise UsageError(f"the recipe {path} is not a file.")
    with open(path, "rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise RecipeError(f"{path}: larger than {MOST_BYTES:,} bytes, the limit of a recipe. Check the path.")
    return content


def _check_events(text: str, source: Source) -> None:
    """Check nesting and size before PyYAML reads the text recursively."""
    depth = nodes = 0
    for event in yaml.parse(text, Loader=LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        nodes += isinstance(event, yaml.NodeEvent)
        line = event.start_mark.line + 1 if event.start_mark else 0
        if depth > MOST_DEPTH:
            raise source.error(line, f"nested deeper than {MOST_DEPTH} levels, the limit of a recipe.")
        if nodes > MOST_NODES:
            raise source.error(line, f"more than {MOST_NODES:,} values, the limit of a recipe.")


def _convert(node: Any, source: Source) -> Any:
    line = node.start_mark.line + 1
    source.nodes += 1
    if source.nodes > MOST_NODES:
        raise source.error(
            line, f"the references (*name) expand to more than {MOST_NODES:,} values. Write the values out."
        )
    if isinstance(node, yaml.ScalarNode):
        return None if node.tag == "tag:yaml.org,2002:null" else _located(node, source)
    if any(node is other for other in source.above):
        raise source.error(line, "a reference (*name) is inside its own value. Write the value out.")
    source.above.append(node)
    mapping = isinstance(node, yaml.MappingNode)
    tree = _mapping(node, source) if mapping else [_convert(item, source) for item in node.value]
    source.above.pop()
    return tree


def _mapping(node: Any, source: Source) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    for key, value in node.value:
        if key.tag == MERGE:
            merged = _merged(value, source) | merged
            continue
        if not isinstance(key, yaml.ScalarNode):
            raise source.error(node.start_mark.line + 1, "a key must be a name, not a list or a mapping.")
        name = _located(key, source)
        if name in tree:
            raise source.error(name.line, f"{name}: the key is given twice. Remove one.")
        tree[name] = _convert(value, source)
    return merged | tree


def _merged(node: Any, source: Source) -> dict[str, Any]:
    """Return the merged mapping of `<<: *name` or `<<: [*one, *two]`; if a key occurs several times, the first wins."""
    tree: dict[str, Any] = {}
    for item in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        inner = _convert(item, source)
        if not isinstance(inner, dict):
            raise source.error(node.start_mark.line + 1, "<< takes a mapping, or a list of mappings.")
        tree = inner | tree
    return tree


def _located(node: Any, source: Source) -> Located:
    text = Located(node.value)
    text.line = node.start_mark.line + 1
    text.quoted = getattr(node, "style", None) in ("'", '"')
    if bad := unusable(text):
        raise source.error(text.line, f"{text[:60]!r} contains {bad}. Remove it.")
    return text


def unusable(text: str) -> str | None:
    """Return what makes a text unusable as a path, name or prompt, such as "a NUL character"; None if nothing does."""
    if "\0" in text:
        return "a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "a lone surrogate, or bytes that are not UTF-8"
    return None


def overlay(tree: dict[str, Any], path: str, text: str) -> None:
    """Set the dotted key `path` in a tree to the text of the flag --path, parsed as YAML. Raises UsageError."""
    flag = f"--{path}"
    if text.lstrip().startswith("#"):  # a colour; YAML would read a comment
        text = "'" + text.replace("'", "''") + "'"
    try:
        value = _flagged(parse(text or "''", Source(flag=flag)), flag)
    except UsageError as error:
        if isinstance(error.__cause__, (yaml.YAMLError, ValueError)):
            raise UsageError(f"{flag}: {text!r} is not valid YAML. Quote text with special characters.") from error
        raise
    place(tree, [_flagged(Located(name), flag) for name in path.split(".")], value)


def tree_of_flags(flags: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Build a recipe section from flags, each (dotted key, text)."""
    tree: dict[str, Any] = {}
    for key, text in flags:
        overlay(tree, key, text)
    return tree


def place(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set tree[a][b][c] for the path (a, b, c), creating missing mappings."""
    *parents, last = path
    for name in parents:
        inner = tree.get(name)
        if not isinstance(inner, dict):  # missing, or only the name of a plug-in
            inner = tree[name] = {"use": inner} if isinstance(inner, str) and inner != "none" else {}
        tree = inner
    tree[last] = value


def _flagged(tree: Any, flag: str) -> Any:
    """Mark all keys and scalars in the tree as coming from a flag, and return the tree."""
    if isinstance(tree, Located):
        tree.flag = flag
    for inner in [*tree, *tree.values()] if isinstance(tree, dict) else tree if isinstance(tree, list) else []:
        _flagged(inner, flag)
    return tree
