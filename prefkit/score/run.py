"""The score stage: one table per alias, filled with what is missing; all aliases in one pass over the images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from prefkit.config import Recipe, Score
from prefkit.errors import NotYet, UsageError
from prefkit.models.place import device_of, rank
from prefkit.output import note, warn
from prefkit.score.core import make_scorer, missing_keys
from prefkit.score.licence import check_licence
from prefkit.score.passes import Job, run_passes
from prefkit.store import Store
from prefkit.store.table import Table, note_pace


def run_score(
    store: Store, recipe: Recipe, alias: str, *, generators: Sequence[str] = (), limit: int | None = None
) -> dict[str, Any]:
    """`run_scores` of one alias."""
    return run_scores(store, recipe, [alias], generators=generators, limit=limit)[alias]


def run_scores(
    store: Store, recipe: Recipe, aliases: Sequence[str], *, generators: Sequence[str] = (), limit: int | None = None
) -> dict[str, dict[str, Any]]:
    """Score what has no score under these aliases yet (failures are tried again). Returns counts per alias.

    limit: at most this many candidates. Raises UsageError where a scorer requires what requests do not have,
    FingerprintError where a table was made by another scorer, and, after the others have done their work, what stopped
    a scorer (PluginError where it scored nothing).
    """
    with ExitStack() as locks:
        jobs = [_job(store, recipe, alias, generators, limit, locks) for alias in aliases]
        for job in jobs:
            locks.callback(job.drop)
        busy = [job for job in jobs if job.todo]
        for job in busy:
            _check_busy(store, job)
        for job in busy:
            note(f"score {job.alias}: {len(job.todo)} candidates with {job.settings.use}")
        run_passes(store, busy)
        for job in busy:
            job.counts["seconds"] = round(job.seconds, 2)
            note_pace(job.table.folder, job.counts["scored"], job.counts["seconds"])
            if job.failure is None and not sum(job.counts[k] for k in ("present", "scored", "failed")):
                raise _nothing(store)  # the parts that held them turned out to be damaged
    failures = [job.failure for job in jobs if job.failure is not None]
    if failures:
        for failure in failures[1:]:
            warn(str(failure))
        raise failures[0]
    return {job.alias: job.counts for job in jobs}


def checked(store: Store, recipe: Recipe, alias: str, limit: int | None) -> Job:
    """What is to be done for one alias, after every check that needs no weights. A dry run makes them all, and writes
    nothing. Raises UsageError, PluginError, FingerprintError."""
    job = _job(store, recipe, alias, (), limit, None)
    if job.todo:
        _check_busy(store, job)
    return job


def scorer_of(recipe: Recipe, alias: str) -> Any:
    """The scorer, not loaded. Raises UsageError for settings that do not fit it."""
    settings = recipe.score[alias]
    if settings.batch_size < 1:
        raise UsageError(f"score.{alias}.batch_size is {settings.batch_size}: it must be at least 1.")
    scorer = make_scorer(settings.use, settings.options, f"score.{alias}")
    check_licence(scorer, settings.accept_license, f"score.{alias}")
    return scorer


def scorer_spec(scorer: Any, settings: Score) -> dict[str, Any]:
    """What the values in its table mean."""
    return dataclasses.asdict(dataclasses.replace(scorer.spec(), dtype=settings.dtype))


def remedy(table: Table) -> str:
    return f"Use another alias under score, or remove {table.folder} to score anew."


def _job(
    store: Store, recipe: Recipe, alias: str, generators: Sequence[str], limit: int | None, locks: ExitStack | None
) -> Job:
    """What is to be done for one alias, its table locked and claimed; without `locks` neither."""
    settings = recipe.score[alias]
    scorer = scorer_of(recipe, alias)
    chosen = list(generators or settings.generators)
    keys = wanted_keys(store, chosen)
    if not keys:
        raise _nothing(store)
    own, of = rank()
    table = store.scores(alias)
    if locks is not None:
        locks.enter_context(store.lock(f"scores/{alias}" + (f".{own}" if of > 1 else "")))
    done = scored_ids(table)
    table.claim(scorer_spec(scorer, settings), remedy(table), empty=not done, write=locks is not None)
    present = sum(key[0] in done for key in keys)
    keys = [key for key in keys if key[0] not in done][:limit]
    counts: dict[str, Any] = {"wanted": len(keys) + present, "present": present, "scored": 0, "failed": 0}
    todo = {key[0] for key in split_by_request(keys, own, of)}
    return Job(alias, settings, scorer, table, chosen, todo, counts)


def _nothing(store: Store) -> UsageError:
    text = f"there is nothing to score in {store.folder}: run `prefkit generate {store.folder}` first."
    return NotYet(text, "generate")


def _check_busy(store: Store, job: Job) -> None:
    from prefkit.models.load import dtype_of

    _check_requires(store, job)
    dtype_of(job.settings.dtype)
    device_of(job.settings.device)


def wanted_keys(store: Store, generators: Sequence[str]) -> list[tuple[str, str]]:
    """(candidate id, request id) of all candidates with an image, in stored order, without reading images."""
    unknown = sorted(set(generators) - set(store.names("candidates")))
    if unknown:
        there = ", ".join(store.names("candidates")) or "none"
        raise NotYet(
            f"no candidates of {', '.join(unknown)} in {store.folder}; there are: {there}.", "generate", unknown
        )
    found: dict[str, str] = {}
    for generator in generators or store.names("candidates"):
        frame = store.candidates(generator).frame(["id", "request_id", "error"])
        frame = frame[frame.error.isna()]
        found |= dict(zip(frame.id, frame.request_id))
    return list(found.items())


def scored_ids(table: Table) -> set[str]:
    frame = table.frame(["id", "value"])
    return set(frame.id[frame.value.notna()])


def split_by_request(keys: Sequence[tuple[str, str]], own: int, of: int) -> list[tuple[str, str]]:
    """This process's share: whole requests, so that a scorer within requests sees all of one."""
    number: dict[str, int] = {}
    for _, request in keys:
        number.setdefault(request, len(number))
    return [key for key in keys if number[key[1]] % of == own]


def _check_requires(store: Store, job: Job) -> None:
    first = next(store.iter_candidates(job.generators, job.todo), None)
    if first is None:  # its part turned out to be damaged just now
        return
    lacking = missing_keys(job.scorer, first)
    if lacking:
        raise UsageError(
            f"score.{job.alias}: the scorer needs {', '.join(lacking)}, which request {first.request_id} does not have. "
            "Add a column of that name to the requests."
        )
