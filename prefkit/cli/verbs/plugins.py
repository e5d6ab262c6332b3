"""plugins: what can be named in a recipe, importing none of it."""

from __future__ import annotations

import argparse
from importlib import metadata
from typing import Any

from prefkit import output
from prefkit.errors import UsageError

VERIFIED = {True: "needs none", False: "no"}  # none could be compared with published weights so far


def arguments(parser: argparse.ArgumentParser) -> None:
    pass


def act(known: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    from prefkit import registry

    if flags or known.run_folder or known.recipe:
        raise UsageError("plugins takes neither a run nor a recipe; it only knows --json and -q.")
    rows: list[dict[str, Any]] = []
    for kind in registry.PLUGIN_PACKAGES:
        own, others = registry.builtin(kind), registry.offered(kind)
        rows += [_row(kind, name, "prefkit", text) for name, text in own.items()]
        rows += [_row(kind, name, p.value, _summary(p), p) for name, points in others.items() for p in points]
        for name, points in others.items():
            if len(points) + (name in own) > 1:
                output.warn(f"several plug-ins are a {kind} called {name!r}; name one as package.module:Name.")
    output.emit(rows, known.json, rows)
    return 0


def _row(kind: str, name: str, where: str, what: str, point: metadata.EntryPoint | None = None) -> dict[str, Any]:
    from prefkit import registry

    row: dict[str, Any] = {"kind": kind, "name": name, "from": where, "licence": None, "verified": None}
    if kind == "scorer":
        said = registry.facts(kind, name) if point is None else {"licence": _licence(point)}
        row |= {"licence": said.get("licence") or "not said", "verified": VERIFIED[bool(said.get("verified"))]}
    return row | {"what": what}


def _licence(point: metadata.EntryPoint) -> str:
    """Of the package; what its scorer says itself is checked before it is loaded."""
    said: Any = point.dist.metadata if point.dist is not None else {}
    return next((str(said[key]) for key in ("License-Expression", "License") if key in said), "")


def _summary(point: metadata.EntryPoint) -> str:
    return str(point.dist.metadata["Summary"] or "") if point.dist is not None else ""
