"""compare: pairwise verdicts of a judge on candidates of one request, each pair in both orders."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from prefkit import output, resolve
from prefkit import recipe as reader
from prefkit.cli import open_run, positive, told
from prefkit.errors import PrefkitError, TooManyFailures


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", action="append", default=[], help="only this entry under compare (may repeat)")
    parser.add_argument("--limit", type=positive, help="for trying out: at most so many pairs")
    parser.add_argument("--dry-run", action="store_true", help="say what would be asked and what it may cost")


def act(known: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    from prefkit.score.comparing import run_compare
    from prefkit.store import Store
    from prefkit.store.files import write_atomic

    run = open_run("compare", known, flags)
    names = resolve.chosen_names(run.recipe, "compare", known.name)
    if known.dry_run:
        return told(planned(run.store, run.recipe, names, known.limit), known.json)
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


def planned(
    store: Any, recipe: Any, names: Sequence[str], limit: int | None
) -> tuple[list[dict[str, Any]], PrefkitError | None]:
    """A row per entry, and the first error: the run would end with it."""
    rows: list[dict[str, Any]] = []
    first = None
    for name in names:
        try:
            rows.append({"name": name, **plan(store, recipe, name, limit)})
        except PrefkitError as error:
            rows.append({"name": name, "missing": str(error)})
            first = first or error
    return rows, first


def plan(store: Any, recipe: Any, name: str, limit: int | None) -> dict[str, Any]:
    from prefkit.score.comparing import checked

    settings = recipe.compare[name]
    judge, pairs, done, _ = checked(store, recipe, name)
    todo = [pair for pair in pairs if pair not in done][:limit]
    row: dict[str, Any] = {"from": settings.use, "wanted": len(pairs), "to do": len(todo)}
    estimate = getattr(judge, "estimate", None)
    if estimate is not None and todo:
        from prefkit.plan import sample_of

        row |= estimate(sample_of(store, settings.generators), 2 * len(todo), images=2)
    return row
