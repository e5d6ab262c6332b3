"""plugins: list the names that a recipe can use, without importing any plug-in."""

from __future__ import annotations

import argparse
from importlib import metadata
from typing import Any

from prefkit import output, registry
from prefkit.errors import UsageError
from prefkit.verified import claim, shown


def act(known: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    if flags or known.run_folder or known.recipe:
        raise UsageError("plugins takes neither a run nor a recipe, only --json and -q.")
    rows: list[dict[str, Any]] = []
    for kind in registry.PLUGIN_PACKAGES:
        builtin, others = registry.builtin(kind), registry.offered(kind)
        rows += [
            _row(kind, name, "prefkit", text, kind == "scorer" and registry.facts(kind, name))
            for name, text in builtin.items()
        ]
        rows += [_row(kind, name, point.value, *_package(point)) for name, points in others.items() for point in points]
        for name, points in others.items():
            if len(points) + (name in builtin) > 1:
                output.warn(f"several plug-ins provide a {kind} named {name!r}; choose one as package.module:Name.")
    output.emit(rows, known.json, rows)
    return 0


def _row(kind: str, name: str, source: str, summary: str, facts: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "kind": kind,
        "name": name,
        "from": source,
        "licence": None,
        "verified": None,
        "what": summary,
    }
    if kind == "scorer":
        known = "; ".join(claim(what, hashes) for what, hashes in facts.get("VERIFIED", {}).items())
        row |= {"licence": facts.get("licence") or "unknown", "verified": shown(known or facts.get("verified", ""))}
    return row


def _package(point: metadata.EntryPoint) -> tuple[str, dict[str, str]]:
    """Return (summary, {"licence": ...}) of the package that provides an entry point, without importing the package."""
    if point.dist is None:
        return "", {}
    package: Any = point.dist.metadata
    licence = next((package[key] for key in ("License-Expression", "License") if key in package), "")
    return str(package["Summary"] or ""), {"licence": str(licence)}
