"""run: a whole recipe, every stage continuing where it stopped."""

from __future__ import annotations

import argparse
from typing import Any

from prefkit import output
from prefkit.api import STAGES
from prefkit.cli.main import dry_run, open_run, rows_of
from prefkit.distributed import group
from prefkit.errors import TooManyFailures, UsageError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fast", action="store_true", help="with the recipe's `fast` section laid over it")


def act(known: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    run = open_run("run", known, flags)
    if known.limit:
        run = trial(run, known.limit)
    verbs = [name for name in STAGES if getattr(run.recipe, name) and needed(name, run.recipe)]
    if not verbs:
        raise UsageError("the recipe has no stage: add generate, score, pair, train or eval.")
    # --limit counts requests; what is scored, and trained steps, are what the recipe says
    limits = {name: known.limit if name in ("generate", "pair", "eval") else None for name in verbs}
    if known.dry_run:
        return dry_run(run, limits, known)
    if run.recipe.about:
        output.note(run.recipe.about)
    processes = group()
    processes.wait()  # all have read the recipe before a stage writes it
    found: dict[str, Any] = {}
    for name, limit in limits.items():
        options = {"controls": known.controls} if name == "train" else {}
        try:
            found[name] = run.stage(name, limit=limit, **options)
        except TooManyFailures as error:
            output.emit(found | {name: error.counts}, known.json, rows_of(name, error.counts))
            raise
        if name != "eval":
            output.note(output.table(rows_of(name, found[name])))
    path = processes.lead(lambda: str(run.report()))
    from prefkit.evaluate.summary import summary_rows

    rows = summary_rows(list(found.get("eval", {}).values()))
    output.emit(found | {"report": path}, known.json, rows or [{"run": str(run.folder)}])
    if rows:
        output.note(
            "* chose the pairs or was the reward (?: not known), so it is no evidence. Wins: tuned over base, ties count half."
        )
    if output.main and not known.json:
        output.say(output.safe(f"report: {path}"))
    output.hint("open the report in a browser; `prefkit report RUN --filter` makes a contact sheet of candidates")
    return 0


def needed(verb: str, recipe: Any) -> bool:
    """Online training makes and judges its own candidates: where all is online, the first stages have nothing to do."""
    online = bool(recipe.train) and all(t.online is not None for t in recipe.train.values())
    return not (online and verb in ("generate", "score", "pair"))


def trial(run: Any, limit: int) -> Any:
    """The same recipe in a folder of its own, since what is trained on a few requests is not what the recipe says."""
    from dataclasses import replace

    from prefkit.api import Run

    folder = f"{run.recipe.run}-limit{limit}"
    output.note(f"--limit {limit} is a trial; it goes to {folder}.")
    return Run(recipe=replace(run.recipe, run=folder))
