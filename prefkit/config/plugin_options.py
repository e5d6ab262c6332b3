"""Check the options of plug-ins against their type annotations, and create the plug-ins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefkit import registry
from prefkit.config.reader import build
from prefkit.errors import UsageError
from prefkit.plugin_guard import guarded


def options(plugin: Any, values: Mapping[str, Any], where: str = "") -> Any:
    """Return `plugin.Options(**values)` with checked types, or None if there is no `Options`. Raises UsageError."""
    if not hasattr(plugin, "Options"):
        if values:
            raise UsageError(f"{where or plugin}: takes no options, but was given {', '.join(values)}. Remove them.")
        return None
    return build(plugin.Options, dict(values), where)


def make(kind: str, name: str, values: Mapping[str, Any], where: str = "") -> Any:
    """Create a plug-in with checked options. Raises UsageError, PluginError."""
    plugin = registry.load_class(kind, name)
    checked = options(plugin, values, where or f"{kind} {name}")
    with guarded(f"{kind} {name}", "could not be created"):
        return plugin(checked)
