"""report: state and counts, report.html, and contact sheets."""

from __future__ import annotations

import argparse
from typing import Any

from prefkit import output
from prefkit.cli import open_run
from prefkit.errors import UsageError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--request", action="append", default=[], help="a contact sheet of this request (may repeat)")
    parser.add_argument("--filter", help='a contact sheet of matching candidates, as in "align < 0.2"')


def act(known: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    from prefkit.report.contact import contact_sheet
    from prefkit.report.page import write_report
    from prefkit.report.state import status

    run = open_run("report", known, flags)
    if not run.store.exists():
        raise UsageError(f"{run.folder} is no run: it has no run.json. Start one with `prefkit generate {run.folder}`.")
    if known.request or known.filter:
        path = contact_sheet(run.store, known.request or None, known.filter)
        output.emit({"sheet": str(path)}, known.json)
        return 0
    path = write_report(run.store, run.recipe)
    state = status(run.store)
    output.emit(
        {**state, "report": str(path)}, known.json, [*state_rows(state), {"table": "report", "name": str(path)}]
    )
    return 0


def state_rows(state: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for kind, entries in state.items():
        for name, value in entries.items() if isinstance(entries, dict) else []:
            counts = value if isinstance(value, dict) else {"count": value}
            text = "  ".join(f"{k} {output._cell(v)}" for k, v in counts.items() if not isinstance(v, (dict, list)))
            rows.append({"table": kind, "name": name, "state": text})
    return rows
