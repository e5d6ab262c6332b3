"""Settings given in Python: sections of a recipe as arguments, with functions and classes as plug-ins."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

from prefkit.errors import UsageError
from prefkit.registry import Passed

NAMED = ("generate", "score", "compare", "pair", "train", "eval")
USING = ("generate", "score", "compare", "pair")  # sections whose entries name a plug-in by `use`
BLOCKS = ("objective", "lora", "online", "base")  # settings within an entry that are sections themselves


def with_plugins(value: Any) -> Any:
    """Return a copy of nested settings in which each function or class is replaced by its name (`Passed`)."""
    if isinstance(value, Mapping):
        return {str(key): with_plugins(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [with_plugins(inner) for inner in value]
    return Passed(value) if inspect.isroutine(value) or isinstance(value, type) else value


def merged(recipe: Mapping[str, Any], sections: Mapping[str, Any]) -> dict[str, Any]:
    """Merge sections into a recipe: keys and entries that are not given keep their values.

    An entry or block that names another plug-in by `use` replaces the old one.
    """
    tree = dict(recipe)
    for section, given in with_plugins(sections).items():
        old = tree.get(section)
        if section in USING and isinstance(given, Mapping):
            given = {name: {"use": entry} if isinstance(entry, str) else entry for name, entry in given.items()}
        if not isinstance(given, Mapping) or not isinstance(old, Mapping):
            tree[section] = given
        elif section in NAMED:
            tree[section] = {**old, **{name: _entry(old.get(name), entry) for name, entry in given.items()}}
        else:
            tree[section] = {**old, **given}
    return tree


def _entry(old: Any, given: Any) -> Any:
    if not isinstance(old, Mapping) or not isinstance(given, Mapping):
        return given
    if "use" in given and given["use"] != old.get("use"):
        return given
    return {**old, **{key: _entry(old.get(key), value) if key in BLOCKS else value for key, value in given.items()}}


def request_lines(requests: Any, column: str) -> str:
    """Return a list or data frame of requests as JSON lines.

    requests: prompts, or dicts with the prompt in `column` and further columns. Raises UsageError.
    """
    if hasattr(requests, "to_dict") and hasattr(requests, "columns"):
        requests = requests.astype(object).where(requests.notna(), None).to_dict("records")
    if not isinstance(requests, Sequence) or isinstance(requests, str):
        raise UsageError(f"requests: {type(requests).__name__} is neither a list of prompts or dicts nor a data frame.")
    lines = []
    for number, request in enumerate(requests):
        row = {column: request} if isinstance(request, str) else request
        if not isinstance(row, Mapping):
            raise UsageError(f"requests[{number}]: {type(request).__name__} is neither a prompt nor a dict.")
        try:
            lines.append(json.dumps({str(key): value for key, value in row.items()}, ensure_ascii=False) + "\n")
        except (TypeError, ValueError) as error:
            raise UsageError(f"requests[{number}]: {error}. Use texts, numbers, lists and dicts.") from error
    return "".join(lines)
