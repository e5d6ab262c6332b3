"""Content fields, which determine what a stored row means, and runtime fields, which do not (such as a batch size)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, fields, is_dataclass
from typing import Any


def runtime(default: Any = None, factory: Any = None) -> Any:
    """Declare a runtime field, which fingerprints leave out because it does not affect what a row means."""
    metadata = {"content": False}
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def content(config: Any) -> dict[str, Any]:
    """Return {name: value} of the content fields that do not have their default value."""
    default = type(config)()
    names = [f.name for f in fields(config) if f.metadata.get("content", True)]
    return {name: plain(value) for name in names if (value := getattr(config, name)) != getattr(default, name)}


def plain(value: Any) -> Any:
    """Convert nested dataclasses and mappings to dicts and lists for JSON."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value
