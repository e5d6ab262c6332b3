"""report: state and counts, report.html, contact sheets and what was decided on them, and pages to vote on."""

from __future__ import annotations

import argparse
from typing import Any

from prefkit import output
from prefkit.cli.main import open_run, positive, whole
from prefkit.errors import UsageError
from prefkit.store.files import read_json


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--request", action="append", default=[], help="a contact sheet of this request (may repeat)")
    parser.add_argument("--filter", help='a contact sheet of matching candidates, as in "align < 0.2"')
    parser.add_argument("--decisions", metavar="FILE", help="add what a contact sheet saved to decisions.csv")
    parser.add_argument(
        "--vote", action="store_true", help="a page to vote on, blind; `prefkit import` reads what it saves"
    )
    asked = parser.add_argument_group("with --vote")
    asked.add_argument(
        "--models", metavar="A,B", help="two models of an eval at equal seeds, as in base,dpo (else candidates)"
    )
    asked.add_argument("--eval", help="the eval that holds them, where several do")
    asked.add_argument("--set", help="the set of requests in it, where several do")
    asked.add_argument("--n", type=positive, default=100, help="pairs at most (100)")
    asked.add_argument("--repeats", type=count, help="pairs shown again with sides swapped (a tenth)")
    asked.add_argument("--seed", type=count, default=0, help="another seed chooses other pairs (0)")
    asked.add_argument(
        "--side", type=positive, default=768, help="pictures are at most so many pixels wide and high (768)"
    )
    asked.add_argument("--sidecar", action="store_true", help="pictures in a folder beside the page instead of in it")
    asked.add_argument("--question", default="Which picture is better?", help="what the page asks")


def act(known: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    from prefkit.report.contact import contact_sheet
    from prefkit.report.page import write_report
    from prefkit.store.state import status

    run = open_run("report", known, flags)
    if not run.store.exists():
        raise UsageError(
            f"{run.folder} is not a run folder: it has no run.json. Start one with `prefkit generate {output.shell_quoted(run.folder)}`."
        )
    if known.vote:
        return vote(run.store, known)
    if known.models or known.eval or known.set or known.repeats is not None or known.sidecar:
        raise UsageError("--models, --eval, --set, --repeats and --sidecar go with --vote.")
    if known.decisions:
        from prefkit.report.contact_decisions import add_decisions

        output.emit(add_decisions(run.store, known.decisions), known.json)
        output.hint(f"next: prefkit pair {output.shell_quoted(run.folder)}")
        return 0
    if known.request or known.filter:
        path = contact_sheet(run.store, known.request or None, known.filter)
        output.emit({"sheet": str(path)}, known.json)
        return 0
    path = write_report(run.store, run.recipe)
    state = status(run.store)
    agreed = run.folder / "agreement.json"
    votes = {"agreement": read_json(agreed)} if agreed.exists() else {}
    said = [{"table": "votes", "name": k, "state": v["sentence"]} for k, v in scorers_of(votes)]
    rows = [*state_rows(state), *said, {"table": "report", "name": str(path)}]
    output.emit({**state, **votes, "report": str(path)}, known.json, rows)
    return 0


def scorers_of(votes: dict[str, Any]) -> list[tuple[str, Any]]:
    return list(votes["agreement"]["scorers"].items()) if votes else []


def vote(store: Any, known: argparse.Namespace) -> int:
    from dataclasses import fields

    from prefkit.human.page import Ask, write_vote_page

    given = {field.name: getattr(known, field.name) for field in fields(Ask)}
    models = tuple(name.strip() for name in (known.models or "").split(",") if name.strip())
    if known.models and len(models) != 2:
        raise UsageError(f"--models {known.models!r}: two names with a comma, as in base,dpo.")
    found = write_vote_page(store, Ask(**(given | {"models": models})))
    output.emit(found, known.json)
    output.hint(
        f"open {found['path']} in a browser, or send it to annotators; then `prefkit import FILE {store.folder}` for each file "
        "that they save. Keep the folder votes/ to yourself: it says which picture is whose."
    )
    return 0


def count(text: str) -> int:
    if not whole(text):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number")
    return int(text)


def state_rows(state: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for kind, entries in state.items():
        for name, value in entries.items() if isinstance(entries, dict) else []:
            counts = value if isinstance(value, dict) else {"count": value}
            text = "  ".join(f"{k} {output.cell(v)}" for k, v in counts.items() if not isinstance(v, (dict, list)))
            rows.append({"table": kind, "name": name, "state": text})
    return rows
