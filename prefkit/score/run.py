"""The score stage: one table per alias, filled with what is missing; all aliases in one pass over the images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from prefkit.config import Recipe, Score, bounds
from prefkit.distributed import check_device, group
from prefkit.errors import NotYet, PluginError, PrefkitError, UsageError
from prefkit.images import Background
from prefkit.models.precision import check_dtype
from prefkit.output import note, shell_quoted, warn
from prefkit.score.contract import spec_of
from prefkit.score.core import close, make_scorer, missing_keys
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

    Under a launcher every process scores its share of the requests, and the counts are of all of them.
    limit: at most this many candidates. Raises UsageError where a scorer requires what requests do not have,
    FingerprintError where a table was made by another scorer, and, after the others have done their work, what stopped
    a scorer (PluginError where it scored nothing).
    """
    processes = group()
    failures: list[PrefkitError] = []
    with ExitStack() as locks:
        jobs = []
        for alias in aliases:
            try:
                jobs.append(_job(store, recipe, alias, generators, limit, locks))
            except PluginError as error:  # the others score what is theirs before it is raised
                failures.append(error)
        for job in jobs:
            locks.callback(job.drop)
        shares = processes.each(lambda: _score(store, jobs, failures))
        found = {job.alias: _total([own[job.alias] for own in shares]) for job in jobs}
        if processes.main:
            for job in jobs:
                note_pace(job.table.folder, found[job.alias]["scored"], found[job.alias].get("seconds", 0.0))
    return found


def _score(store: Store, jobs: Sequence[Job], failed: Sequence[PrefkitError]) -> dict[str, dict[str, Any]]:
    """This process's share. Raises, after the others have done their work, what stopped a scorer.

    failed: what stopped scorers before they had a job.
    """
    busy = [job for job in jobs if job.todo]
    for job in busy:
        _check_busy(store, job)
    for job in busy:
        note(f"score {job.alias}: {len(job.todo)} candidates with {job.settings.use}")
    run_passes(store, busy)
    for job in busy:
        job.counts["seconds"] = round(job.seconds, 2)
        if job.failure is None and not sum(job.counts[k] for k in ("present", "scored", "failed")):
            raise _nothing(store)  # the parts that held them turned out to be damaged
    failures = [*failed, *(job.failure for job in jobs if job.failure is not None)]
    if failures:
        for failure in failures[1:]:
            warn(str(failure))
        raise failures[0]
    return {job.alias: job.counts for job in jobs}


def _total(shares: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts of all processes; `wanted` and `present` are of the table, `seconds` is the longest."""
    found = shares[0] | {key: sum(own[key] for own in shares) for key in ("scored", "failed")}
    seconds = [own["seconds"] for own in shares if "seconds" in own]
    return found | ({"seconds": max(seconds)} if seconds else {})


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
    bounds.check(settings, f"score.{alias}")
    scorer = make_scorer(settings.use, settings.options, f"score.{alias}")
    check_licence(scorer, settings.accept_license, f"score.{alias}")
    return scorer


def spec_from(recipe: Recipe, alias: str) -> dict[str, Any]:
    """What the values in the alias's table would mean. Raises as `scorer_of`; leaves no process running."""
    scorer = scorer_of(recipe, alias)
    try:
        return scorer_spec(scorer, recipe.score[alias])
    finally:
        close(scorer, f"score {alias}")


def scorer_spec(scorer: Any, settings: Score) -> dict[str, Any]:
    """What the values in its table mean."""
    spec = dataclasses.asdict(dataclasses.replace(spec_of(scorer), dtype=settings.dtype))
    spec["preprocessing"] += Background.suffix()
    return spec


def remedy(table: Table) -> str:
    return f"Use another alias under score, or remove {table.folder} to score anew."


def _job(
    store: Store, recipe: Recipe, alias: str, generators: Sequence[str], limit: int | None, locks: ExitStack | None
) -> Job:
    """What is to be done for one alias, its table locked and claimed; without `locks` neither."""
    settings, processes = recipe.score[alias], group()
    chosen = list(generators or settings.generators)
    made: list[tuple[Any, dict[str, Any], list[tuple[str, str]]]] = []

    def prepare() -> None:
        scorer = scorer_of(recipe, alias)
        made.append((scorer, scorer_spec(scorer, settings), wanted_keys(store, chosen)))

    processes.each(prepare)  # an error in one process is one in all: they go on to the next alias together
    scorer, spec, keys = made[0]
    if not keys:
        raise _nothing(store)
    table = store.scores(alias)
    if locks is not None:
        locks.enter_context(processes.held(store.lock(f"scores/{alias}")))
    done = scored_ids(table)
    processes.wait()  # all have seen what is done before one of them adds to it
    processes.lead(lambda: table.claim(spec, remedy(table), empty=not done, write=locks is not None))
    whole = scorer.scope == "within_request"
    missing = missing_of(keys, done, whole)
    present = len(keys) - len(missing)
    counts: dict[str, Any] = {"wanted": present + len(missing[:limit]), "present": present, "scored": 0, "failed": 0}
    todo = {key[0] for key in share_of(keys, missing, (processes.rank, processes.count), whole, limit)}
    return Job(alias, settings, scorer, table, chosen, todo, counts)


def _nothing(store: Store) -> UsageError:
    text = f"there is nothing to score in {store.folder}: run `prefkit generate {shell_quoted(store.folder)}` first."
    return NotYet(text, "generate")


def _check_busy(store: Store, job: Job) -> None:
    _check_requires(store, job)
    check_dtype(job.settings.dtype)
    if job.settings.device is not None:
        check_device(job.settings.device)


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


def missing_of(keys: Sequence[tuple[str, str]], done: set[str], whole: bool) -> list[tuple[str, str]]:
    """What has no score yet. whole: all of its request too, since values of a request compare only within one call."""
    open_requests = {request for cid, request in keys if cid not in done}
    return [key for key in keys if (key[1] in open_requests if whole else key[0] not in done)]


def share_of(
    keys: Sequence[tuple[str, str]],
    missing: Sequence[tuple[str, str]],
    share: tuple[int, int],
    whole: bool,
    limit: int | None,
) -> list[tuple[str, str]]:
    """What this process, (number, of how many), scores now.

    Whose a request is follows from all keys, never from what is missing: that changes under the eyes of the processes,
    one of which may have flushed before another looks. limit: candidates of all processes together; whole requests, and
    one at least, where they cannot be cut.
    """
    own, of = share
    there = set(missing)
    missing = [key for key in split_by_request(keys, own, of) if key in there]
    if limit is None:
        return missing
    most = (limit + of - 1 - own) // of
    if not whole or most >= len(missing):
        return missing[:most]
    cut = {request for _, request in missing[most:]}
    kept = [key for key in missing if key[1] not in cut]
    return kept or [key for key in missing if most and key[1] == missing[0][1]]


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
