"""run: run all stages of a recipe, each continuing where it stopped; with `rounds`, all stages of every round."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from prefkit import output
from prefkit.api import STAGES, Run
from prefkit.cli.main import dry_run, note_distances, open_run, rows_of
from prefkit.config import rounds
from prefkit.distributed import group
from prefkit.errors import TooManyFailures, UsageError

Limits = Mapping[str, int | None]  # stage -> its --limit


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fast", action="store_true", help="override the recipe with the values in its section `fast`")


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
    if run.recipe.rounds > 1:
        rounds.check(run.recipe)
        rounds.check_folder(run.recipe, run.store)
    else:
        rounds.check_stage(run.recipe, run.store, "run")
    if known.dry_run:
        return dry_run(run, limits, known)
    if run.recipe.about:
        output.note(run.recipe.about)
    processes = group()
    processes.wait()  # all processes must have read the recipe before a stage rewrites it
    if run.recipe.rounds > 1:
        return in_rounds(run, limits, known)
    results = stages(run, limits, known)
    path = processes.lead(partial(_report, run))
    from prefkit.evaluate.summary import summary_rows

    rows = summary_rows(list(results.get("eval", {}).values()))
    finish(results | {"report": path}, rows or [{"run": str(run.folder)}], known, evaluated=bool(rows))
    note_distances(list(results.get("eval", {}).values()))
    sheet = f"prefkit report {output.shell_quoted(run.folder)} --filter 'index < 4'"
    output.hint(f"open the report in a browser; `{sheet}` makes a contact sheet of candidates")
    return 0


def stages(run: Run, limits: Limits, known: argparse.Namespace) -> dict[str, Any]:
    """Run the stages in `limits` and return {stage: its results}."""
    results: dict[str, Any] = {}
    for name, limit in limits.items():
        options = {"redo": known.redo} | ({"controls": known.controls} if name == "train" else {})
        try:
            results[name] = run.stage(name, limit=limit, **options)
        except TooManyFailures as error:
            output.emit(results | {name: error.counts}, known.json, rows_of(name, error.counts))
            raise
        if name != "eval":
            output.note(output.table(rows_of(name, results[name])))
    return results


def in_rounds(run: Run, limits: Limits, known: argparse.Namespace) -> int:
    """Run the stages in `limits` for every round. Print one line per round and, at the end, the scores by round."""
    from prefkit.report.rounds import line, score_rows

    processes = group()
    existed = run.folder.exists()
    results: dict[str, Any] = {}
    try:
        for number, part in enumerate(run.rounds(), 1):
            output.note(f"round {number} of {run.recipe.rounds}: {part.folder}")
            results[str(number)] = stages(part, limits, known)
            processes.lead(partial(_report, part))
            output.note(line(part.store, number, run.recipe.rounds))
    except UsageError:
        if not existed and processes.main:
            run.store.undo(keep=[])
        raise
    path = processes.lead(partial(_report, run))
    rows = score_rows(run.store)
    finish({"rounds": results, "report": path}, rows or [{"run": str(run.folder)}], known, evaluated=bool(rows))
    return 0


def _report(run: Run) -> str:
    return str(run.report())


def finish(results: dict[str, Any], rows: list[dict[str, Any]], known: argparse.Namespace, evaluated: bool) -> None:
    """Print the results as JSON (with --json), or else the rows and the path of the report."""
    output.emit(results, known.json, rows)
    if evaluated:
        text = "* This score chose the pairs or was the reward, so it does not count as evidence (?: it may have been)."
        wins = " Wins: how often tuned beats base; ties count half."
        brackets = " In brackets: 95 % bootstrap interval over requests."
        output.note(text + (brackets if "rounds" in results else wins))
    if output.main and not known.json:
        output.say(output.safe(f"report: {results['report']}"))


def needed(verb: str, recipe: Any) -> bool:
    """Return False for generate, score and pair if all trainings are online: online training does this work itself."""
    online = bool(recipe.train) and all(train.online is not None for train in recipe.train.values())
    return not (online and verb in ("generate", "score", "pair"))
