"""Which fields decide what a row means, and which only how the work is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, fields, is_dataclass
from typing import Any


def free(default: Any = None, factory: Any = None) -> Any:
    """A field that a fingerprint leaves out: how the work is done, not what it means."""
    metadata = {"content": False}
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def content(config: Any) -> dict[str, Any]:
    """The fields that decide what a row means, without those that stand at their default."""
    found: dict[str, Any] = {}
    fresh = type(config)()
    for f in fields(config):
        value = getattr(config, f.name)
        if f.metadata.get("content", True) and value != getattr(fresh, f.name):
            found[f.name] = plain(value)
    return found


def plain(value: Any) -> Any:
    """Dataclasses and mappings as JSON-able dicts and lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value
