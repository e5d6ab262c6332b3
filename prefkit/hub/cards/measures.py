"""The measurements of a fit as table rows, for the terminal and for cards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def measured_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one table row per measured number and control, in all and by group, then one per count."""
    rows: list[dict[str, Any]] = []
    parts = [("", result.get("validation", {}) | result.get("controls", {}))]
    for column, groups in result.get("by", {}).items():
        parts += [(f"{column} {group}: ", measured) for group, measured in groups.items()]
    for prefix, measured in parts:
        for name, value in measured.items():
            values = value if isinstance(value, dict) else {"mean": value}
            columns = {"value": "mean", "low": "low", "high": "high", "n": "n", "reason": "reason"}
            rows.append({"measured": prefix + name} | {c: values[key] for c, key in columns.items() if key in values})
    return rows + [{"measured": name, "value": value} for name, value in result.get("counts", {}).items()]
