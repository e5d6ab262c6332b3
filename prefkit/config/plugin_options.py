"""Plug-ins with the options of a recipe: checked against their annotations, then created."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefkit import registry
from prefkit.config.reader import build
from prefkit.errors import UsageError
from prefkit.plugin_guard import guarded


def options(plugin: Any, given: Mapping[str, Any], where: str = "") -> Any:
    """`plugin.Options(**given)`, values checked against the annotations. Raises UsageError with the nearest name."""
    if not hasattr(plugin, "Options"):
        if given:
            raise UsageError(f"{where or plugin}: takes no options, but was given {', '.join(given)}.")
        return None
    return build(plugin.Options, dict(given), where)


def make(kind: str, name: str, given: Mapping[str, Any], where: str = "") -> Any:
    """An instance of the plug-in class with its options checked."""
    found = registry.load_class(kind, name)
    checked = options(found, given, where or f"{kind} {name}")
    with guarded(f"{kind} {name}", "could not be created"):
        return found(checked)
