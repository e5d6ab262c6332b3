"""What a command would do, from what, without loading weights: `--dry-run`.

The stages' own checks are called, so that a dry run ends as the run would: with the same error and exit code.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from prefkit.config import Recipe
from prefkit.config.resolve import chosen_names
from prefkit.errors import NotYet, PrefkitError, StoreError, UsageError
from prefkit.output import duration
from prefkit.store import Store

Row = dict[str, Any]


def plan(
    store: Store,
    recipe: Recipe,
    limits: Mapping[str, int | None],
    names: Sequence[str],
    controls: bool = False,
) -> tuple[list[Row], PrefkitError | None]:
    """(rows, first error) of the stages in limits, in their order, each with its `--limit`.

    A row per stage and entry: wanted, present, to do, bytes on disk, expected time, and what is missing. The error is the
    one that the run would end with; what an earlier stage has yet to make is not an error."""
    _check_folder(store)
    if controls:
        recipe = replace(recipe, train={name: replace(train, controls=True) for name, train in recipe.train.items()})
    rows: list[Row] = []
    first: PrefkitError | None = None
    for number, (verb, limit) in enumerate(limits.items()):
        before, stale = list(limits)[:number], any(map(_open, rows))
        for name in chosen_names(recipe, verb, names):
            row, error = _planned(store, recipe, (verb, name), limit, before, stale)
            rows.append(row)
            first = first or error
    return rows, first


def _planned(
    store: Store, recipe: Recipe, entry: tuple[str, str], limit: int | None, before: Sequence[str], stale: bool
) -> tuple[Row, PrefkitError | None]:
    """stale: an earlier stage has something to do, so that what is on disk now is not what this stage will find."""
    verb, name = entry
    row: Row = {"stage": verb, "name": name}
    try:
        return row | STAGES[verb](store, recipe, name, limit), None
    except PrefkitError as error:
        found = error
    if before:  # the stages before may put that right, but not settings that are wrong in themselves
        try:
            SETTINGS[verb](recipe, name)
        except PrefkitError as error:
            return row | {"missing": str(error)}, error
        if _passes(recipe, found, before, stale):
            return row | {"missing": str(found)}, None
    return row | {"missing": str(found)}, found


def _passes(recipe: Recipe, error: PrefkitError, before: Sequence[str], stale: bool) -> bool:
    """Whether the stages before this one may put right what it finds wrong on disk."""
    if isinstance(error, NotYet):
        return error.verb in before and all(made in getattr(recipe, error.verb) for made in error.names)
    return stale


def _open(row: Row) -> bool:
    return "missing" in row or bool(row.get("to do"))


def _check_folder(store: Store) -> None:
    """Raises StoreError where the run's folder could not be written."""
    folder = store.folder.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise StoreError(
            f"{store.folder} cannot be written: {there} is {'not writable' if there.is_dir() else 'a file'}."
        )


# -- the settings of an entry alone -----------------------------------------------------------------------------------
def _settings_generate(recipe: Recipe, name: str) -> None:
    from prefkit.generate.run import check

    check(name, recipe)


def _settings_score(recipe: Recipe, alias: str) -> None:
    from prefkit.score.run import spec_from

    spec_from(recipe, alias)


def _settings_pair(recipe: Recipe, name: str) -> None:
    """With the scores and the candidates that earlier stages of the recipe will have made."""
    from prefkit.pair.run import check_size, no_scores, settings_of

    config, strategy = settings_of(recipe, name)
    if hasattr(strategy, "compared"):
        return  # it reads votes
    store = Store(recipe.run)
    there = sorted({*store.names("scores"), *recipe.score})
    missing = [alias for alias in config.weights if alias not in there]
    if missing and recipe.score:
        raise UsageError(no_scores(missing, there))
    wanted = {g: s.n for g, s in recipe.generate.items() if not config.generators or g in config.generators}
    if wanted and not set(store.names("candidates")) - set(recipe.generate):
        check_size(strategy, sum(wanted.values()), name, config)


def _settings_train(recipe: Recipe, name: str) -> None:
    from prefkit.train.settings import check, check_start

    check(recipe, name)
    check_start(recipe, recipe.train[name])


def _settings_eval(recipe: Recipe, name: str) -> None:
    from prefkit.evaluate.run import check
    from prefkit.evaluate.sets import request_sets

    store = Store(recipe.run)
    cfg = check(recipe, name)[0]
    if not store.requests():  # those of the source: no stage before makes others
        request_sets(store, recipe, cfg, None, write=False)


# -- and what there is to do ------------------------------------------------------------------------------------------
def _generate(store: Store, recipe: Recipe, name: str, limit: int | None) -> Row:
    from prefkit.generate.requests import keep_known, read_requests
    from prefkit.generate.run import checked

    requests = store.requests()
    if recipe.requests.source or not requests:
        requests = keep_known(requests, read_requests(recipe.requests, recipe.model.inputs), store.folder)
    jobs, done, _ = checked(store, recipe, name, requests, limit)
    todo = sum(job[3] not in done for job in jobs)
    table = store.candidates(name)
    return {
        "from": recipe.requests.source,
        "wanted": len(jobs),
        "to do": todo,
        **_size_and_time(table.folder, todo, len(done)),
    }


def _score(store: Store, recipe: Recipe, alias: str, limit: int | None) -> Row:
    from prefkit.score.run import checked

    settings = recipe.score[alias]
    job = checked(store, recipe, alias, limit)
    try:
        todo, present = len(job.todo), job.counts["present"]
        return {
            "from": settings.use,
            "wanted": job.counts["wanted"],
            "to do": todo,
            **_size_and_time(job.table.folder, todo, present),
            **_estimate(store, job.scorer, settings.generators, todo),
        }
    finally:
        job.drop()


def _compare(store: Store, recipe: Recipe, alias: str, limit: int | None) -> Row:
    from prefkit.score.compare import checked

    settings = recipe.compare[alias]
    judge, pairs, done, _ = checked(store, recipe, alias)
    todo = len([pair for pair in pairs if pair not in done][:limit])
    estimate = _estimate(store, judge, settings.generators, 2 * todo, images=2)
    return {"from": settings.use, "wanted": len(pairs), "to do": todo, **estimate}


def _estimate(store: Store, scorer: Any, generators: Sequence[str], calls: int, **how: Any) -> Row:
    """What so many calls cost, by the first candidates with an image; {} for a scorer that cannot say."""
    estimate = getattr(scorer, "estimate", None)
    if estimate is None or not calls:
        return {}
    sample = islice((c for c in store.iter_candidates(generators) if c.error is None), 8)
    return dict(estimate(list(sample), calls, **how))


def _pair(store: Store, recipe: Recipe, name: str, limit: int | None) -> Row:
    from prefkit.pair.run import checked

    weights, wanted = checked(store, recipe, name, limit)
    return {"from": ", ".join(weights), "wanted": wanted, **_size_and_time(store.pairs(name), 0, 0)}


def _train(store: Store, recipe: Recipe, name: str, limit: int | None) -> Row:
    from prefkit.train.run import checked
    from prefkit.train.settings import check_start

    config = recipe.train[name]
    checked(store, recipe, name)
    check_start(recipe, config)
    if config.online is not None:
        from prefkit.train.checkpoint import last_step

        wanted = min(config.online.rounds, limit or config.online.rounds)
        done = last_step(store.train(name) / "checkpoints")
        rewards = ", ".join(config.online.rewards)
        return {"from": f"rewards {rewards}", "wanted": wanted, "to do": max(0, wanted - done)}
    done = sum('"loss"' in line for line in _lines(store.train(name) / "metrics.jsonl"))
    steps = min(config.steps, limit or config.steps)
    return {
        "from": f"pairs {config.pairs}",
        "wanted": steps,
        "to do": max(0, steps - done),
        **_size_and_time(store.train(name), 0, 0),
    }


def _eval(store: Store, recipe: Recipe, name: str, limit: int | None) -> Row:
    from prefkit.evaluate.run import checked

    return {"from": ", ".join(checked(store, recipe, name, limit)), **_size_and_time(store.eval(name), 0, 0)}


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _size_and_time(folder: Path, todo: int, done: int) -> Row:
    """Bytes there and expected, and the expected time at the pace measured so far."""
    from prefkit.store.files import read_json

    there = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) if folder.exists() else 0
    found: Row = {"MB there": round(there / 1e6, 2)}
    if todo:
        pace = folder / "pace.json"
        found["MB to come"] = round(there / done * todo / 1e6, 2) if done else None
        found["time"] = (
            duration(read_json(pace)["seconds_per_item"] * todo) if pace.exists() else "known after the first run"
        )
    return found


STAGES: Any = {
    "generate": _generate,
    "score": _score,
    "compare": _compare,
    "pair": _pair,
    "train": _train,
    "eval": _eval,
}
SETTINGS: Any = {
    "generate": _settings_generate,
    "score": _settings_score,
    "pair": _settings_pair,
    "train": _settings_train,
    "eval": _settings_eval,
}
