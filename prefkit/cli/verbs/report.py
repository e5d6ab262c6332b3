"""report: the state of a run, report.html, comparisons of runs, contact sheets and their decisions, and voting pages."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from prefkit import output
from prefkit.cli.main import open_run, positive, whole
from prefkit.errors import UsageError
from prefkit.store.files import read_json

if TYPE_CHECKING:
    from prefkit.human.page import VoteSettings


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("others", nargs="*", metavar="RUN", help="further runs: write one page that compares all of them")
    add("--request", action="append", default=[], help="write a contact sheet of this request (may be repeated)")
    add("--filter", help='write a contact sheet of the candidates that match, for example "align < 0.2"')
    add("--decisions", metavar="FILE", help="add FILE, saved from a contact sheet, to decisions.csv")
    text = "also show how scorers agree with the votes for each value of this column of the requests (such as law)"
    add("--by", metavar="COLUMN", help=text)
    add("--vote", action="store_true", help="write a blind voting page; `prefkit import` reads the votes saved from it")
    group = parser.add_argument_group("with --vote")
    vote_arguments(group)
    group.add_argument(
        "--sidecar", action="store_true", help="store pictures in a folder next to the page, not in the page"
    )


def vote_arguments(group: Any) -> None:
    """Add the flags that choose the pairs to vote on to an argument group."""
    add = group.add_argument
    add("--models", metavar="A,B", help="two models to compare at equal seeds, e.g. base,dpo (default: candidates)")
    add("--eval", help="the eval to take images from, if several evaluated both models")
    add("--set", help="the request set to use, if the eval has several")
    add("--n", type=positive, default=100, help="maximum number of pairs (100)")
    add("--repeats", type=count, help="number of pairs to show again with sides swapped (a tenth of the pairs)")
    add("--seed", type=count, default=0, help="seed for the choice of pairs (0)")
    add("--side", type=positive, default=768, help="maximum width and height of pictures, in pixels (768)")
    add("--question", default="Which picture is better?", help="question on the page")


def vote_settings(known: argparse.Namespace) -> VoteSettings:
    """Return the settings that the flags of `vote_arguments` (and --sidecar) give. Raises UsageError."""
    from dataclasses import fields

    from prefkit.human.page import VoteSettings

    models = tuple(name.strip() for name in (known.models or "").split(",") if name.strip())
    if known.models and len(models) != 2:
        raise UsageError(f"--models {known.models!r}: give two names separated by a comma, for example base,dpo.")
    options = {field.name: getattr(known, field.name) for field in fields(VoteSettings) if hasattr(known, field.name)}
    return VoteSettings(**(options | {"models": models}))


def act(known: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    from prefkit.report.contact import contact_sheet
    from prefkit.report.page import write_report
    from prefkit.store.summary import status

    if known.others:
        return compare(known, flags)
    run = open_run("report", known, flags)
    folder = output.shell_quoted(run.folder)
    if not run.store.exists():
        raise UsageError(f"{run.folder} is not a run folder: it has no run.json. Run `prefkit generate {folder}`.")
    if known.vote or known.decisions or known.request or known.filter:
        run.store.check_single()
    if known.vote:
        return vote(run.store, known)
    if known.models or known.eval or known.set or known.repeats is not None or known.sidecar:
        raise UsageError("--models, --eval, --set, --repeats and --sidecar need --vote.")
    if known.decisions:
        from prefkit.cli.next_step import after
        from prefkit.report.contact import add_decisions

        output.emit(add_decisions(run.store, known.decisions), known.json)
        output.hint(after("decisions", run.store, run.recipe))
        return 0
    if known.request or known.filter:
        path = contact_sheet(run.store, known.request or None, known.filter)
        output.emit({"sheet": str(path)}, known.json)
        return 0
    path = write_report(run.store, run.recipe, known.by)
    state = status(run.store)
    saved = run.folder / "agreement.json"
    votes = {"agreement": read_json(saved)} if saved.exists() else {}
    scorers = votes["agreement"]["scorers"] if votes else {}
    rows = [*state_rows(state), *({"table": "votes", "name": k, "state": v["sentence"]} for k, v in scorers.items())]
    rows += [
        {"table": f"votes, {label}", "name": alias, "state": f"{row['value']:.0%} of {row['n']} votes"}
        for label, found in (votes["agreement"].get("by", {}) if votes else {}).items()
        for alias, row in found.items()
        if row["value"] is not None
    ]
    output.emit({**state, **votes, "report": str(path)}, known.json, [*rows, {"table": "report", "name": str(path)}])
    return 0


def compare(known: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    from prefkit.evaluate.summary import summary_rows
    from prefkit.report.compare import compare_runs
    from prefkit.report.evidence import results
    from prefkit.store import Store

    alone = ("request", "filter", "decisions", "by", "vote", "models", "eval", "set", "sidecar", "recipe")
    given = [name for name in alone if getattr(known, name)] + [name for name, _ in flags]
    if given:
        raise UsageError(f"--{given[0]} is for one run. To compare runs, give their folders only.")
    stores = [Store(folder) for folder in (known.run_folder, *known.others)]
    path = compare_runs(stores)
    rows = [{"run": str(store.folder)} | row for store in stores for row in summary_rows(list(results(store).values()))]
    output.emit({"report": str(path), "runs": rows}, known.json, rows)
    if not known.json:
        output.say(output.safe(f"report: {path}"))
    return 0


def vote(store: Any, known: argparse.Namespace) -> int:
    from prefkit.human.page import write_vote_page

    page = write_vote_page(store, vote_settings(known))
    output.emit(page, known.json)
    output.hint(
        f"open {page['path']} in a browser, or send it to annotators. Run `prefkit import FILE {store.folder}` for "
        "each file that they save, or with the folder of all files. Keep the folder votes/ private: it names the model or candidate of each picture."
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
