"""compare: pairwise verdicts of a judge on candidates of one request, each pair in both orders."""

from __future__ import annotations

import argparse
from typing import Any

from prefkit import output
from prefkit.cli.main import open_run, positive, print_plan
from prefkit.config import reader, resolve
from prefkit.errors import TooManyFailures


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", action="append", default=[], help="only this entry under compare (may repeat)")
    parser.add_argument("--limit", type=positive, help="for trying out: at most so many pairs")
    parser.add_argument("--dry-run", action="store_true", help="say what would be asked and what it may cost")


def act(known: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    from prefkit.score.compare import run_compare
    from prefkit.store import Store
    from prefkit.store.files import write_atomic

    run = open_run("compare", known, flags)
    names = resolve.chosen_names(run.recipe, "compare", known.name)
    if known.dry_run:
        from prefkit.cli.dry_run import plan

        return print_plan(plan(run.store, run.recipe, {"compare": known.limit}, names), known.json)
    found: dict[str, Any] = {}
    for name in names:
        found[name] = run_compare(run.store, run.recipe, name, limit=known.limit)
    store = Store.create(run.recipe.run)
    write_atomic(store.folder / "recipe.yaml", reader.dump(run.recipe))
    output.emit(found, known.json, [{"compare": name, **counts} for name, counts in found.items()])
    output.note(
        "flip_rate: pairs whose verdict turns with the order; first_rate: answers for the image shown first, 0.5 is fair."
    )
    broken = [
        f"{name}: {counts['failed']} of {counts['wanted']}"
        for name, counts in found.items()
        if counts["failed"] > run.recipe.compare[name].max_failed * counts["wanted"]
    ]
    if broken:
        raise TooManyFailures(
            f"compare is done, but more pairs failed than max_failed allows ({'; '.join(broken)}). Running it again "
            "retries them.",
            found,
        )
    return 0
