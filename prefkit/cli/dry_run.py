"""`--dry-run`: show what a command would do, without loading weights.

A dry run calls the stages' own checks, so that it ends with the same error and exit code as the real run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.config import Recipe
from prefkit.config.redo import outdated, refusal
from prefkit.config.resolve import chosen_names
from prefkit.errors import FingerprintError, NotYet, PrefkitError, StoreError, UsageError
from prefkit.output import duration
from prefkit.store import Store
from prefkit.store.files import read_json

if TYPE_CHECKING:
    from prefkit.api import Run

Row = dict[str, Any]
OTHER = "settings differ"
#: keys of a training's stored settings that change with the pairs, which an earlier stage may make again
FOLLOWING = {"pairs", "masks"}
KINDS = {
    "generate": "candidates",
    "score": "scores",
    "compare": "comparisons",
    "pair": "pairs",
    "train": "train",
    "eval": "eval",
}


def plan(
    store: Store,
    recipe: Recipe,
    limits: Mapping[str, int | None],
    names: Sequence[str],
    controls: bool = False,
    redo: bool = False,
) -> tuple[list[Row], PrefkitError | None]:
    """Return (rows, first error) of a dry run. limits: {stage: its `--limit`}, in the order in which the stages run.

    Each recipe entry of a stage has one row: wanted, to do, MB on disk, expected time, and the entry's error, if any.
    The first error is the one that would end the real run. Results that an earlier stage will make may be missing."""
    from prefkit.evaluate.sets import with_models

    _check_folder(store)
    if controls:
        recipe = replace(recipe, train={name: replace(train, controls=True) for name, train in recipe.train.items()})
    rows: list[Row] = []
    first: PrefkitError | None = None
    moved: dict[str, str] = {}  # entry that --redo would move -> the reason
    for number, (verb, limit) in enumerate(limits.items()):
        earlier = list(limits)[:number]
        # True if earlier stages have work to do
        stale = bool(moved) or any("missing" in row or row.get("to do") for row in rows)
        for name in chosen_names(recipe, verb, names):
            if verb == "eval" and "train" in earlier:
                recipe = with_models(store, recipe, name, planned=True)
            row: Row = {"stage": verb, "name": name}
            try:
                row |= _work(store, recipe, (verb, name), limit, moved)
                if verb == "train" and "redo" not in row:
                    _check_grown(
                        store, recipe, name, [r["name"] for r in rows if r["stage"] == "generate" and r.get("to do")]
                    )
                if verb == "train" and stale and "redo" not in row and (store.train(name) / "spec.json").exists():
                    row["note"] = "made again if its pairs change" if redo else "needs --redo if its pairs change"
            except FingerprintError as error:
                entries = outdated(store, recipe, error)
                if redo and entries:
                    moved |= {entry: f"made from {entries[0]}" for entry in entries} | {entries[0]: OTHER}
                    row["redo"] = OTHER
                else:
                    row["missing"] = str(error)
                    follows = stale and set(error.keys) <= FOLLOWING
                    first = first or (None if follows else refusal(store, entries, error))
            except PrefkitError as error:
                wrong = _settings_error(recipe, verb, name) if earlier else None
                row["missing"] = str(wrong or error)
                if wrong or not _may_resolve(recipe, error, earlier, stale):
                    first = first or wrong or error
            rows.append(row)
    return rows, first


def _work(store: Store, recipe: Recipe, entry: tuple[str, str], limit: int | None, moved: Mapping[str, str]) -> Row:
    """Return the cells that describe an entry's work. entry: (stage, name). Raises the errors of the stage's checks.

    moved: {path that --redo will have moved away: reason}; of an entry among them, only the settings are checked.
    """
    verb, name = entry
    path = f"{KINDS[verb]}/{name}"
    reasons = [reason for other, reason in moved.items() if other == path or other.startswith(f"{path}/")]
    if reasons and (wrong := _settings_error(recipe, verb, name)) is not None:
        raise wrong
    work = {} if path in moved else STAGES[verb](store, recipe, name, limit)
    return work | ({"redo": reasons[0]} if reasons else {})


def plan_rounds(
    run: Run, limits: Mapping[str, int | None], controls: bool, redo: bool
) -> tuple[list[Row], PrefkitError | None]:
    """Return (rows, first error) of a dry run of a recipe with `rounds`: the rows of `plan` for each round.

    Rounds after an unfinished round are not checked, because their candidates and pairs do not exist yet.
    """
    rows: list[Row] = []
    last: list[Row] = []
    for number in range(1, run.recipe.rounds + 1):
        if any(row["stage"] == "train" and "redo" in row for row in last):
            last = [
                {"stage": row["stage"], "name": row["name"], "redo": f"made from round {number - 1}"} for row in last
            ]
            rows += [{"round": number, **row} for row in last]
            continue
        try:
            part = run.round(number)
        except NotYet:
            last = [{**{key: row.get(key) for key in ("stage", "name")}, **_later(row, number)} for row in last]
            rows += [{"round": number, **row} for row in last]
            continue
        last, error = plan(part.store, part.recipe, limits, (), controls, redo)
        rows += [{"round": number, **row} for row in last]
        if error is not None:
            return rows, error
    return rows, None


def _later(row: Row, number: int) -> Row:
    """Return the cells of `row` that are known before round `number` starts: the amounts of generate and train."""
    wanted = row["wanted"] if "wanted" in row and row["stage"] in ("generate", "train") else None
    known = {} if wanted is None else {"wanted": wanted, "to do": wanted}
    return {**known, "missing": f"starts from the model of round {number - 1}, which is not trained yet"}


def _check_grown(store: Store, recipe: Recipe, name: str, generators: Sequence[str]) -> None:
    """Raise FingerprintError if train.NAME exists, and its pairs change because `generators` make new candidates.

    Any new candidate changes the normalised scores, and so the gaps, of all pairs.
    """
    pairs = str(recipe.train[name].pairs)
    from prefkit.train.checkpoint import untrained

    used = set(generators).intersection(getattr(recipe.pair.get(pairs), "generators", None) or generators)
    if used and pairs in recipe.pair and not untrained(store.train(name)):
        raise FingerprintError(
            f"{store.train(name)} was trained on pairs/{pairs}, which will change: generate.{min(used)} makes new "
            "candidates. Pair only the earlier generators (`generators`), or train under another name.",
            store.train(name),
            ["generate"],
        )


def _settings_error(recipe: Recipe, verb: str, name: str) -> PrefkitError | None:
    """Return the error in an entry's own settings, which running earlier stages cannot resolve; None if valid."""
    try:
        SETTINGS.get(verb, lambda *_: None)(recipe, name)
    except PrefkitError as error:
        return error
    return None


def _may_resolve(recipe: Recipe, error: PrefkitError, earlier: Sequence[str], stale: bool) -> bool:
    """True if the error may disappear once the earlier stages have run."""
    if isinstance(error, NotYet):
        return error.verb in earlier and all(made in getattr(recipe, error.verb) for made in error.names)
    return stale


def _check_folder(store: Store) -> None:
    """Raise StoreError if the run folder cannot be written."""
    folder = store.folder.absolute()
    parent = next(path for path in (folder, *folder.parents) if path.exists())
    if not parent.is_dir():
        raise StoreError(f"{store.folder} cannot be written: {parent} is a file. Choose another folder.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise StoreError(f"{store.folder} cannot be written: no write permission for {parent}. Change its permissions.")


# -- per stage: check the settings of one recipe entry -----------------------------------------------------------------
def _settings_generate(recipe: Recipe, name: str) -> None:
    from prefkit.generate.run import check

    check(name, recipe)


def _settings_score(recipe: Recipe, name: str) -> None:
    from prefkit.score.run import spec_from

    spec_from(recipe, name)


def _settings_pair(recipe: Recipe, name: str) -> None:
    """Check the settings of a pair entry against all scores and candidates, including those still to be made."""
    from prefkit.pair.run import check_size, settings_of
    from prefkit.pair.weights import no_scores
    from prefkit.store.query import check_query

    config, strategy = settings_of(recipe, name)
    if hasattr(strategy, "compared"):
        return  # the strategy reads comparisons, not scores
    store = Store(recipe.run)
    scores = sorted({*store.names("scores"), *recipe.score})
    missing = [score for score in config.weights if score not in scores]
    if missing and recipe.score:
        raise UsageError(no_scores(missing, scores))
    if config.filter and scores:
        check_query(config.filter, scores, f"pair.{name}.filter")
    sizes = [g.n for name, g in recipe.generate.items() if not config.generators or name in config.generators]
    if sizes and not set(store.names("candidates")) - set(recipe.generate):
        check_size(strategy, sum(sizes), name, config)


def _settings_train(recipe: Recipe, name: str) -> None:
    from prefkit.train.run import check, check_start

    check(recipe, name)
    check_start(recipe, recipe.train[name])


def _settings_eval(recipe: Recipe, name: str) -> None:
    from prefkit.evaluate.run import check
    from prefkit.evaluate.sets import request_sets

    store = Store(recipe.run)
    cfg = check(recipe, name)[0]
    if not store.requests():  # the requests can only come from the source, not from an earlier stage
        request_sets(store, recipe, cfg, None, write=False)


# -- per stage: the row of one recipe entry ----------------------------------------------------------------------------
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


def _score(store: Store, recipe: Recipe, name: str, limit: int | None) -> Row:
    from prefkit.score.run import checked

    settings = recipe.score[name]
    job = checked(store, recipe, name, limit)
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


def _compare(store: Store, recipe: Recipe, name: str, limit: int | None) -> Row:
    from prefkit.score.compare import checked

    settings = recipe.compare[name]
    judge, pairs, done, _ = checked(store, recipe, name)
    todo = len([pair for pair in pairs if pair not in done][:limit])
    estimate = _estimate(store, judge, settings.generators, 2 * todo, images=2)
    return {"from": settings.use, "wanted": len(pairs), "to do": todo, **estimate}


def _estimate(store: Store, scorer: Any, generators: Sequence[str], calls: int, **how: Any) -> Row:
    """Return the scorer's estimate of what `calls` calls cost, based on the first 8 candidates; {} if it has none."""
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
    from prefkit.train.checkpoint import last_step
    from prefkit.train.run import checked

    config = recipe.train[name]
    checked(store, recipe, name)
    if config.online is not None:
        wanted = min(config.online.rounds, limit or config.online.rounds)
        done = last_step(store.train(name) / "checkpoints")
        rewards = ", ".join(config.online.rewards)
        return {"from": f"rewards {rewards}", "wanted": wanted, "to do": max(0, wanted - done)}
    log = store.train(name) / "metrics.jsonl"
    done = sum('"loss"' in line for line in log.read_text(encoding="utf-8").splitlines()) if log.exists() else 0
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


def _size_and_time(folder: Path, todo: int, done: int) -> Row:
    """Return row cells: MB on disk, MB still to be written, and the time for `todo` items at the measured pace."""
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) if folder.exists() else 0
    row: Row = {"MB on disk": round(size / 1e6, 2)}
    if todo:
        pace = folder / "pace.json"
        seconds = read_json(pace)["seconds_per_item"] * todo if pace.exists() else None
        row["MB to come"] = round(size / done * todo / 1e6, 2) if done else None
        row["time"] = "known after the first run" if seconds is None else duration(seconds)
    return row


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
