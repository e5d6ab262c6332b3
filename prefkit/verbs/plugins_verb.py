"""plugins: what can be named in a recipe, importing none of it."""

from __future__ import annotations

import argparse
from typing import Any

from prefkit import output
from prefkit.errors import UsageError


def arguments(parser: argparse.ArgumentParser) -> None:
    pass


def act(known: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    from prefkit import registry

    if flags or known.run_folder or known.recipe:
        raise UsageError("plugins takes neither a run nor a recipe; it only knows --json and -q.")
    rows: list[dict[str, Any]] = []
    for kind in registry.ROOMS:
        rows += [
            {"kind": kind, "name": n, "from": "prefkit", "what": text} for n, text in registry.builtin(kind).items()
        ]
        rows += [{"kind": kind, "name": n, "from": p.value, "what": ""} for n, p in registry.installed(kind).items()]
    output.emit(rows, known.json, rows)
    return 0
