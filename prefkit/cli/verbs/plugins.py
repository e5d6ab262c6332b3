"""plugins: list the names that a recipe can use, without importing any plug-in."""

from __future__ import annotations

import argparse
from importlib import metadata
from typing import Any

from prefkit import output, registry
from prefkit.errors import UsageError
from prefkit.verified import claim, shown

POSITIONAL = ("KIND", f"list only one kind, with licences: {' | '.join(registry.PLUGIN_PACKAGES)}")


def act(known: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    only = known.run_folder
    if flags or known.recipe or (only and only not in registry.PLUGIN_PACKAGES):
        kinds = ", ".join(registry.PLUGIN_PACKAGES)
        close = registry.nearest(only or "", list(registry.PLUGIN_PACKAGES))
        raise UsageError(f"plugins takes a kind of plug-in ({kinds}), --json and -q, and nothing else.{close}")
    rows: list[dict[str, Any]] = []
    for kind in [str(only)] if only else list(registry.PLUGIN_PACKAGES):
        builtin, others = registry.builtin(kind), registry.offered(kind)
        rows += [
            _row(kind, name, "prefkit", text, kind == "scorer" and registry.facts(kind, name))
            for name, text in builtin.items()
        ]
        rows += [_row(kind, name, point.value, *_package(point)) for name, points in others.items() for point in points]
        for name, points in others.items():
            if len(points) + (name in builtin) > 1:
                output.warn(f"several plug-ins provide a {kind} named {name!r}; choose one as package.module:Name.")
    shown_in = ("name", "from", "licence", "what") if only else ("kind", "name", "from", "what")
    output.emit(rows, known.json, [{key: row[key] for key in shown_in if row[key] is not None} for row in rows])
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
