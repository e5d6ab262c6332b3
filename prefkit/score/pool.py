"""Scores by workers on other machines: chunks of candidates as units, and a worker that holds the scorers.

A worker cannot join scorers as its memory allows, as `passes` does: which scorers share a pool of workers is decided
before, without weights. A unit names rows of parts: a chunk as in one process, or a request for scope within_request.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

from prefkit import engines
from prefkit.config import Recipe
from prefkit.config.reader import set_background
from prefkit.distributed import described, revived
from prefkit.errors import PrefkitError
from prefkit.score.contract import spec_of
from prefkit.score.core import FunctionScorer, scorer_of
from prefkit.score.embed.encoder import Encoder
from prefkit.score.passes import Job, chunk_size, columns_of, generators_of, run_pass
from prefkit.store import Store
from prefkit.store.latest import locate
from prefkit.store.reader import PARTS_IN_MEMORY, places_by_request
from prefkit.store.run import candidate_of
from prefkit.store.table import Table, read_part, see
from prefkit.types import Candidate
from prefkit.verified import NO_WEIGHTS

Unit = list[tuple[Path, int]]  # rows to score: (part, index of the row)


def run_in_pool(store: Store, recipe: Recipe, jobs: Sequence[Job]) -> None:
    """Run all jobs by the current engine. As in `passes`, an error of one scorer does not stop the others."""
    for together in _groups(jobs):
        work = engines.Work(
            f"score {', '.join(job.name for job in together)}",
            Scorers,
            (store, recipe, [(job.name, job.table, job.generators) for job in together]),
            _device(together[0]),
        )
        engine = engines.current()
        try:
            engine.spread(work, _units(store, together), partial(_keep, together))
        except PrefkitError:
            if any(job.failure is None for job in together):
                raise
        for job in together:
            job.seconds /= engine.width
            job.settle()
            job.drop()


def _device(job: Job) -> str | None:
    """Return the device that the recipe asks for, "cpu" for functions and scorers without weights."""
    light = isinstance(job.scorer, FunctionScorer) or spec_of(job.scorer).verified == NO_WEIGHTS
    return job.settings.device or ("cpu" if light else None)


def _groups(jobs: Sequence[Job]) -> list[list[Job]]:
    """Return the jobs whose scorers share workers: those without weights, and those with the same encoder.

    All jobs of a group score the same candidates.
    """
    groups: dict[Any, list[Job]] = {}
    for job in jobs:
        shared = job.encoder_key() or ("light" if _device(job) == "cpu" else job.name)
        key = job.name if job.exclusive else (shared, _device(job), frozenset(job.todo))
        groups.setdefault(key, []).append(job)
    return list(groups.values())


def _units(store: Store, jobs: list[Job]) -> list[Unit]:
    generators, ids = generators_of(jobs), jobs[0].todo
    if jobs[0].scorer.scope == "within_request":
        return list(places_by_request(store, generators, ids).values())
    found = locate([store.candidates(name) for name in generators or store.names("candidates")], ids)
    places = [(found.paths[part], row) for part, row in zip(found.part.tolist(), found.row.tolist())]
    return [places[i : i + chunk_size(jobs)] for i in range(0, len(places), chunk_size(jobs))]


def _keep(jobs: list[Job], units: Sequence[Unit], result: dict[str, dict[str, Any]] | engines.Lost) -> None:
    """Add the result of `Scorers.do` to the jobs. Raises PrefkitError if all jobs have failed."""
    for job in jobs:
        if isinstance(result, engines.Lost):
            _write_lost(job, units, result.reason)
            continue
        report = result[job.name]
        if report["failure"] is not None and job.failure is None:
            job.failure = revived(report["failure"])
        for key in ("scored", "failed"):
            job.counts[key] += report[key]
        job.seconds += report["seconds"]
        job.first_error = job.first_error or report["first_error"]
        job.written += report["parts"]
        if isinstance(encoder := getattr(job.scorer, "encoder", None), Encoder):
            encoder.read |= report["read"]
            encoder.cut |= report["cut"]
            encoder.length = max(encoder.length, report["length"])
    if all(job.failure is not None for job in jobs):
        raise PrefkitError(f"{', '.join(job.name for job in jobs)}: all scorers have failed.")


def _write_lost(job: Job, units: Sequence[Unit], reason: str) -> None:
    """Write a row with the reason for each candidate of units that no worker could score."""
    for path, places in groupby((place for unit in units for place in unit), key=lambda place: place[0]):
        if (part := read_part(path, ["id"])) is not None:
            ids = part.column("id").take([row for _, row in places]).to_pylist()
            job.rows += [{"id": cid, "value": None, "error": reason} for cid in ids]
    job.counts["failed"] += len(job.rows)
    job.first_error = job.first_error or reason
    job.flush()


class Scorers:
    """A worker that holds scorers with their weights, and appends the values that it computes to the tables."""

    def __init__(self, store: Store, recipe: Recipe, tables: list[tuple[str, Table, list[str]]]) -> None:
        set_background(recipe.background)
        self.requests, self.images = {r.request_id: r for r in store.requests()}, store.input_images()
        self.jobs = [
            # begun: only the command, which knows all results, can tell whether every candidate failed
            Job(name, recipe.score[name], scorer_of(recipe, name), table, generators, set(), {}, begun=True)
            for name, table, generators in tables
        ]
        self.columns = columns_of(self.jobs)
        self.whole = self.jobs[0].scorer.scope == "within_request"
        self.part = lru_cache(PARTS_IN_MEMORY)(self._part)
        for job in self.jobs:
            job.load()

    def do(self, units: Sequence[Unit]) -> dict[str, dict[str, Any]]:
        """Score the candidates. Returns a report for each job."""
        live = [job for job in self.jobs if job.failure is None]
        before = {job.name: len(job.table.written) for job in self.jobs}
        for job in self.jobs:
            job.counts, job.todo, job.seconds, job.first_error = {"scored": 0, "failed": 0}, set(), 0.0, ""
            job.flushed = time.monotonic()
        if live:
            run_pass(live, self._chunks(units))
        return {job.name: self._report(job, before[job.name]) for job in self.jobs}

    def _report(self, job: Job, before: int) -> dict[str, Any]:
        encoder = getattr(job.scorer, "encoder", None)
        texts: dict[str, Any] = {}
        if isinstance(encoder, Encoder):
            texts = {"read": encoder.read, "cut": encoder.cut, "length": encoder.length}
            encoder.read, encoder.cut = set(), set()
        return (
            job.counts
            | texts
            | {
                "seconds": job.seconds,
                "first_error": job.first_error,
                "parts": job.table.written[before:],
                "failure": described(job.failure) if job.failure is not None else None,
            }
        )

    def _chunks(self, units: Sequence[Unit]) -> Iterator[list[Candidate]]:
        """Yield the candidates of each unit. A request with a candidate in a damaged part is skipped."""
        for unit in units:
            rows: list[dict[str, Any]] = []
            for path, places in groupby(unit, key=lambda place: place[0]):
                part = self.part(path)
                rows += part.take([row for _, row in places]).to_pylist() if part is not None else []
            if rows and (not self.whole or len(rows) == len(unit)):
                for job in self.jobs:
                    job.todo.update(row["id"] for row in rows)
                yield [candidate_of(row, self.requests, self.images) for row in rows]

    def _part(self, path: Path) -> Any:
        if not path.exists():  # another machine has written the part
            see(path.parent, lambda value: [value], lambda value: value, [path.name])
        return read_part(path, self.columns)
