"""The score stage: adds the missing values to each score's table, with as few passes over the images as possible."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from prefkit import engines
from prefkit.config import Recipe, Score
from prefkit.distributed import check_device, group
from prefkit.errors import NotYet, PluginError, PrefkitError, UsageError
from prefkit.images import Background
from prefkit.models.precision import check_dtype
from prefkit.output import note, shell_quoted, warn
from prefkit.score.contract import spec_of
from prefkit.score.core import check_requires, close, scorer_of
from prefkit.score.passes import Job, run_passes
from prefkit.score.pool import run_in_pool
from prefkit.store import Store
from prefkit.store.table import Table, note_pace, see

REMEDY = "Use another name under score."
Key = tuple[str, str]  # (candidate id, request id)


def run_scores(
    store: Store,
    recipe: Recipe,
    names: Sequence[str],
    *,
    generators: Sequence[str] = (),
    limit: int | None = None,
    ids: set[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Compute all missing and failed values of the scores `names`. Returns the counts of each score.

    Under a launcher (such as torchrun) each process scores its share of the requests, and the counts are totals over all
    processes. A worker of --shard scores its share and counts that. limit: maximum number of candidates. ids: consider
    only these candidates, regardless of which process owns their requests. Raises UsageError if requests lack a column that a scorer requires, and
    FingerprintError if a table was made by another scorer. An error that stops one scorer (PluginError if every candidate
    failed) is raised after the other scorers have finished.
    """
    processes = group()
    failures: list[PrefkitError] = []
    with ExitStack() as locks:
        jobs = []
        for name in names:
            try:
                jobs.append(_job(store, recipe, name, generators, limit, locks, ids))
            except PluginError as error:  # raised after the other scorers have finished
                failures.append(error)
        for job in jobs:
            locks.callback(job.drop)
        try:
            shares = processes.each(lambda: _score(store, recipe, jobs, failures))
        except PrefkitError:
            for job in jobs if processes.main and not processes.sharded else ():
                job.table.discard_empty()
            raise
        for job in jobs:
            see(job.table.folder, processes.gather, processes.broadcast, job.written)
        counts = {job.name: _total([share[job.name] for share in shares]) for job in jobs}
        if processes.main:
            for job in jobs:
                note_pace(job.table.folder, counts[job.name]["scored"], counts[job.name].get("seconds", 0.0))
    return counts


def _score(
    store: Store, recipe: Recipe, jobs: Sequence[Job], failures: Sequence[PrefkitError]
) -> dict[str, dict[str, Any]]:
    """Score this process's share. After all jobs have ended, raises the first error of `failures` or of a job."""
    busy = [job for job in jobs if job.todo]
    for job in busy:
        _check_ready(store, job)
    for job in busy:
        note(f"score {job.name}: {len(job.todo)} candidates with {job.settings.use}")
    if engines.current().remote:
        run_in_pool(store, recipe, busy)
    else:
        run_passes(store, busy)
    for job in busy:
        job.counts["seconds"] = round(job.seconds, 2)
        if job.failure is None and not sum(job.counts[k] for k in ("present", "scored", "failed")):
            raise _nothing(store)  # the files with the candidates turned out to be damaged
    failures = [*failures, *(job.failure for job in jobs if job.failure is not None)]
    if failures:
        for failure in failures[1:]:
            warn(str(failure))
        raise failures[0]
    return {job.name: job.counts for job in jobs}


def _total(shares: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Merge the processes' counts: sums, but the maximum of `seconds`, and rank 0's other counts."""
    total = shares[0] | {key: sum(share[key] for share in shares) for key in ("wanted", "present", "scored", "failed")}
    seconds = [share["seconds"] for share in shares if "seconds" in share]
    return total | ({"seconds": max(seconds)} if seconds else {})


def checked(store: Store, recipe: Recipe, name: str, limit: int | None) -> Job:
    """Run the checks of `run_scores` that need no weights, and return the score's job. Writes nothing."""
    job = _job(store, recipe, name, (), limit, None)
    if job.todo:
        _check_ready(store, job)
    return job


def spec_from(recipe: Recipe, name: str) -> dict[str, Any]:
    """Return the spec that this score's table would have. Raises the same errors as `scorer_of`."""
    scorer = scorer_of(recipe, name)
    try:
        return scorer_spec(scorer, recipe.score[name])
    finally:
        close(scorer, f"score {name}")


def scorer_spec(scorer: Any, settings: Score) -> dict[str, Any]:
    """Return the scorer's spec with the score's dtype and the background colour of transparent images."""
    spec = dataclasses.asdict(dataclasses.replace(spec_of(scorer), dtype=settings.dtype))
    spec["preprocessing"] += Background.suffix()
    return spec


def _job(
    store: Store,
    recipe: Recipe,
    name: str,
    generators: Sequence[str],
    limit: int | None,
    locks: ExitStack | None,
    ids: set[str] | None = None,
) -> Job:
    """Create this process's job of a score. If `locks` is set, also lock and claim the score's table."""
    settings, processes = recipe.score[name], group()
    chosen = list(generators or settings.generators)
    prepared: list[tuple[Any, dict[str, Any], list[Key]]] = []

    def prepare() -> None:
        scorer = scorer_of(recipe, name)
        prepared.append((scorer, scorer_spec(scorer, settings), wanted_keys(store, chosen)))

    processes.each(prepare)  # raises in all processes if it raises in one, so that none waits for another
    scorer, spec, keys = prepared[0]
    if not keys:
        raise _nothing(store)
    table = store.scores(name)
    if locks is not None:
        locks.enter_context(processes.held(store.lock(f"scores/{name}")))
    done = scored_ids(table)
    processes.wait()  # all processes have read `done` before one of them writes
    # another worker of --shard may have claimed the table and be about to write its first rows
    empty = not done and not processes.sharded
    processes.lead(lambda: table.claim(spec, REMEDY, empty=empty, write=locks is not None))
    whole = scorer.scope == "within_request"
    own = [key for key in keys if processes.owns(key[1])] if ids is None else among(keys, ids, whole)
    missing = missing_of(own, done, whole)
    present = len(own) - len(missing)
    todo = {key[0] for key in limited(missing, (processes.rank, processes.count), whole, limit)}
    counts: dict[str, Any] = {"wanted": present + len(todo), "present": present, "scored": 0, "failed": 0}
    begun = any(cid in done for cid, _ in keys)
    return Job(name, settings, scorer, table, chosen, todo, counts, begun=begun)


def _nothing(store: Store) -> UsageError:
    text = f"there is nothing to score in {store.folder}: run `prefkit generate {shell_quoted(store.folder)}` first."
    return NotYet(text, "generate")


@engines.for_workers
def _check_ready(store: Store, job: Job) -> None:
    first = next(store.iter_candidates(job.generators, job.todo), None)
    if first is not None:  # None: the file with the candidate turned out to be damaged
        check_requires(job.scorer, first, job.name)
    check_dtype(job.settings.dtype)
    if job.settings.device is not None:
        check_device(job.settings.device)


def wanted_keys(store: Store, generators: Sequence[str]) -> list[Key]:
    """Return the keys of all candidates that have an image, in stored order, without reading the images."""
    existing = store.names("candidates")
    unknown = sorted(set(generators) - set(existing))
    if unknown:
        text = f"{store.folder} has no candidates of {', '.join(unknown)}; generators: {', '.join(existing) or 'none'}."
        raise NotYet(text, "generate", unknown)
    keys: dict[str, str] = {}
    for generator in generators or existing:
        frame = store.candidates(generator).frame(["id", "request_id", "error"])
        frame = frame[frame.error.isna()]
        keys |= dict(zip(frame.id, frame.request_id))
    return list(keys.items())


def scored_ids(table: Table) -> set[str]:
    frame = table.frame(["id", "value"])
    return set(frame.id[frame.value.notna()])


def missing_of(keys: Sequence[Key], done: set[str], whole: bool) -> list[Key]:
    """Return the keys without a score. whole: if a request has such a key, return all of its keys, because its values
    are comparable only if one call computed them."""
    open_requests = {request for cid, request in keys if cid not in done}
    return [key for key in keys if (key[1] in open_requests if whole else key[0] not in done)]


def among(keys: Sequence[Key], ids: set[str], whole: bool) -> list[Key]:
    """Return the keys of the candidates `ids`. whole: only those of requests all of whose candidates are in `ids`."""
    cut = {request for cid, request in keys if cid not in ids} if whole else set()
    return [key for key in keys if key[0] in ids and key[1] not in cut]


def limited(missing: Sequence[Key], share: tuple[int, int], whole: bool, limit: int | None) -> list[Key]:
    """Return the missing keys of a process that it scores now. share: (rank, number of processes).

    limit: maximum number of candidates over all processes; if `whole`, requests are not split, and at least one is
    scored.
    """
    if limit is None:
        return list(missing)
    rank, count = share
    most = (limit + count - 1 - rank) // count
    if not whole or most >= len(missing):
        return list(missing[:most])
    cut = {request for _, request in missing[most:]}
    kept = [key for key in missing if key[1] not in cut]
    return kept or [key for key in missing if most and key[1] == missing[0][1]]
