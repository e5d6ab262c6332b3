"""run: run all stages of a recipe, each continuing where it stopped."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from prefkit import output
from prefkit.api import STAGES, Run
from prefkit.cli.main import dry_run, note_distances, open_run, rows_of
from prefkit.distributed import group
from prefkit.errors import TooManyFailures, UsageError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fast", action="store_true", help="let the recipe's section `fast` override the rest of it")


def act(known: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    run = open_run("run", known, flags)
    if known.limit:  # a trial gets its own folder: results for a few requests are not the results of the recipe
        run = Run(recipe=replace(run.recipe, run=f"{run.recipe.run}-limit{known.limit}"))
        output.note(f"--limit {known.limit} makes this a trial run; its folder is {run.folder}.")
    verbs = [name for name in STAGES if getattr(run.recipe, name) and needed(name, run.recipe)]
    if not verbs:
        raise UsageError("the recipe has no stage: add generate, score, pair, train or eval.")
    # --limit counts requests, not scored candidates or training steps
    limits = {name: known.limit if name in ("generate", "pair", "eval") else None for name in verbs}
    if known.dry_run:
        return dry_run(run, limits, known)
    if run.recipe.about:
        output.note(run.recipe.about)
    processes = group()
    processes.wait()  # until all processes have read the recipe, which a stage writes
    results: dict[str, Any] = {}
    for name, limit in limits.items():
        options = {"controls": known.controls} if name == "train" else {}
        try:
            results[name] = run.stage(name, limit=limit, **options)
        except TooManyFailures as error:
            output.emit(results | {name: error.counts}, known.json, rows_of(name, error.counts))
            raise
        if name != "eval":
            output.note(output.table(rows_of(name, results[name])))
    path = processes.lead(lambda: str(run.report()))
    from prefkit.evaluate.summary import summary_rows

    rows = summary_rows(list(results.get("eval", {}).values()))
    output.emit(results | {"report": path}, known.json, rows or [{"run": str(run.folder)}])
    if rows:
        output.note(
            "* This score was used to choose the pairs or as the reward, so it does not count as evidence (?: unknown)."
            " Wins: how often tuned beats base; ties count half."
        )
    note_distances(list(results.get("eval", {}).values()))
    if output.main and not known.json:
        output.say(output.safe(f"report: {path}"))
    sheet = f"prefkit report {output.shell_quoted(run.folder)} --filter"
    output.hint(f"open the report in a browser; `{sheet}` makes a contact sheet of candidates")
    return 0


def needed(verb: str, recipe: Any) -> bool:
    """Return False for generate, score and pair if every training is online, as it then makes and scores candidates."""
    online = bool(recipe.train) and all(train.online is not None for train in recipe.train.values())
    return not (online and verb in ("generate", "score", "pair"))
