"""The generate stage: make the missing candidates in batches, and encode images while the next batch is sampled."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from prefkit import engines
from prefkit.config import Generate, Model, Recipe, bounds, compatibility
from prefkit.config.reader import set_background
from prefkit.distributed import Group, group
from prefkit.errors import PrefkitError, StoreError, UsageError
from prefkit.generate.generators import (
    FLAGGED,
    candidate_id,
    candidate_seed,
    check_generator,
    encoded,
    generator_spec,
    latents_payload,
    open_generator,
)
from prefkit.generate.inputs import Inputs
from prefkit.generate.requests import keep_known, read_requests
from prefkit.models.cpu_offload import check_offload
from prefkit.models.load.trained import trained_model
from prefkit.models.memory import free_memory, out_of_memory
from prefkit.output import Progress, note, warn
from prefkit.plugin_guard import error_summary
from prefkit.store import Store
from prefkit.store.table import Table, candidate_row, note_pace, see, spelled_as
from prefkit.types import Candidate, Request, digest

FLUSH_ROWS, FLUSH_SECONDS = 256, 20.0
MOST_CANDIDATES = 20_000_000  # per generator, so that all ids fit in memory
REMEDY = "Use another name under generate."
FORMATS = ("png", "webp")
OUTCOMES = ("made", "failed", "flagged")
Job = tuple[Request, int, int, str]  # request, index, seed, candidate id


@dataclass(frozen=True)
class Batch:
    """The jobs of one call of the generator. done: ids of those whose candidates exist, which are not written again.

    The first batch of a process has two duties: prompts: all prompts, to count those that the text encoders truncate.
    fresh: True if the table has no candidates; it is an error if then the whole batch fails.
    """

    jobs: list[Job]
    done: set[str]
    prompts: Sequence[str] = ()
    fresh: bool = False

    def __len__(self) -> int:
        return len(self.jobs)


def sync_requests(store: Store, recipe: Recipe) -> list[Request]:
    """Add the recipe's requests to the run and return them. If the recipe has no source, return the run's requests.

    Requests that the run already has keep their split. Raises UsageError if the prompt or extra of one has changed.
    """
    known = store.requests()
    if not recipe.requests.source and known:
        return known
    source = read_requests(recipe.requests, recipe.model.inputs, store)
    return add_requests(store, source)


def add_requests(store: Store, requests: Sequence[Request]) -> list[Request]:
    """Add requests to the run and return them, with the split that the run stores for known ones.

    Workers of --shard take no lock: each reads again what it wrote, and repeats if another has replaced it. Raises
    UsageError if the prompt or extra of a known request has changed.
    """
    while True:
        known = store.requests()
        wanted = keep_known(known, requests, store.folder)
        if {r.request_id: r for r in [*known, *wanted]} == {r.request_id: r for r in known}:
            return wanted
        with nullcontext() if group().sharded else store.lock("requests", seconds=60):
            known = store.requests()  # another process may have added requests meanwhile
            wanted = keep_known(known, requests, store.folder)
            store.write_requests({r.request_id: r for r in [*known, *wanted]}.values())


def checked(
    store: Store, recipe: Recipe, name: str, requests: Sequence[Request], limit: int | None
) -> tuple[list[Job], set[str], dict[str, Any]]:
    """Run all checks that need no weights. Returns (all jobs in order, ids of finished candidates, spec).

    Raises UsageError, PluginError, or FingerprintError if existing candidates were made with other settings.
    """
    settings = recipe.generate[name]
    check(name, recipe)
    chosen = [r for r in requests if r.split in settings.splits][:limit]
    if not chosen:
        splits = ", ".join(sorted({r.split for r in requests}))
        raise UsageError(
            f"generate.{name}: no request is in the splits {', '.join(settings.splits) or '(none)'}; the requests are "
            f"in {splits}. Add prompts, change requests.test_share, or change generate.{name}.splits."
        )
    wanted = len(chosen) * settings.n
    if wanted > MOST_CANDIDATES:
        raise UsageError(
            f"generate.{name}: {len(chosen):,} requests and n: {settings.n} make {wanted:,} candidates, more than the "
            f"limit of {MOST_CANDIDATES:,}. Lower n, or give fewer requests."
        )
    model = model_of(store, recipe, settings)
    if ":" not in settings.use and not model.base:
        raise UsageError("model.base is not set: give a Hub id, a pipeline folder or a single file.")
    spec = spelled_as(store.candidates(name).spec(), generator_spec(model, settings))
    jobs = []
    for request in chosen:
        for index in range(settings.n):
            seed = candidate_seed(settings.seed, request.request_id, index)
            jobs.append((request, index, seed, candidate_id(spec, request, index, seed)))
    done = done_ids(store.candidates(name))
    if any(job[3] not in done for job in jobs):
        check_generator(model, settings)
    store.candidates(name).claim(spec, REMEDY, empty=not done, write=False)
    return jobs, done, spec


def model_of(store: Store, recipe: Recipe, settings: Generate) -> Model:
    """Return the recipe's model or, if `settings.model` is set, that trained model. Raises UsageError."""
    return recipe.model if settings.model is None else trained_model(store.folder, recipe.model, settings.model)


@engines.for_workers
def check(name: str, recipe: Recipe) -> None:
    """Raise UsageError for invalid settings. Reads no files."""
    settings = recipe.generate[name]
    bounds.check(settings, f"generate.{name}")
    compatibility.check("generate", name, recipe)
    if settings.format not in FORMATS:
        raise UsageError(f"generate.{name}.format: {settings.format!r} is not known; choose {' or '.join(FORMATS)}.")
    check_offload(f"generate.{name}.offload", settings.offload, settings.device)


def done_ids(table: Table) -> set[str]:
    """Return the ids of finished candidates: those without an error, and those that the safety checker blanked."""
    frame = table.frame(["id", "error"])
    return set(frame.id[frame.error.isna() | frame.error.str.startswith(FLAGGED, na=False).astype(bool)])


def run_generate(
    store: Store,
    recipe: Recipe,
    name: str,
    *,
    requests: Sequence[Request] | None = None,
    limit: int | None = None,
    inputs: Store | None = None,
) -> dict[str, Any]:
    """Generate the missing candidates of `recipe.generate[name]`. Returns counts. Raises PrefkitError.

    With several processes (torchrun), each makes a part of the batches, and the counts are sums over all processes. A
    worker of --shard makes its part and counts that. inputs: the run whose inputs/ table holds the images of these requests, default `store`.
    """
    processes = group()
    settings = recipe.generate[name]
    if requests is None:
        if not processes.alone:  # rank 0 writes the requests before the others read them
            processes.lead(lambda: sync_requests(store, recipe) and None)
        requests = sync_requests(store, recipe)
    found: list[Any] = []
    # in all processes together: if one moved an outdated table (--redo) before another had read it, only one would fail
    processes.each(lambda: found.append(checked(store, recipe, name, requests, limit)))
    jobs, _, spec = found[0]
    table = store.candidates(name)
    with processes.held(store.lock(f"candidates/{name}")):
        done = done_ids(table)  # again, because another command may have held the lock and made some
        processes.wait()  # until all processes have read the table, which the next lines may change
        # another worker of --shard may have claimed the table and be about to write its first rows
        processes.lead(lambda: table.claim(spec, REMEDY, empty=not done and not processes.sharded))
        _check_agreed(processes, name, jobs)
        batches = own_batches(jobs, settings.batch_size)
        if processes.sharded:
            jobs = [job for batch in batches for job in batch]
        units = [Batch(batch, done.intersection(job[3] for job in batch)) for batch in batches]
        units = [unit for unit in units if len(unit.done) < len(unit)]
        counts = processes.broadcast({"wanted": len(jobs), "present": sum(job[3] in done for job in jobs)})
        missing = counts["wanted"] - counts["present"]
        if missing:
            note(f"generate {name}: {missing} candidates to make, in batches of {settings.batch_size}")
        if units:
            prompts = list({job[0].prompt for job in jobs})
            units[0] = replace(units[0], prompts=prompts, fresh=not counts["present"])
        made = processes.each(lambda: _make(table, recipe, name, units, (store, inputs or store)))
        counts |= _total(made)
        see(table.folder, processes.gather, processes.broadcast, made[0]["parts"])
        if missing:
            processes.lead(lambda: note_pace(table.folder, counts["made"], counts.get("seconds", 0.0)))
        if counts["flagged"]:
            warn(f"generate {name}: the safety checker blanked {counts['flagged']} images, which are left out.")
    return counts


def own_batches(jobs: Sequence[Job], size: int) -> list[list[Job]]:
    """Return this process's share of the batches of all wanted jobs: it does not depend on what exists already."""
    return group().share([list(jobs[i : i + size]) for i in range(0, len(jobs), size)])


def _check_agreed(processes: Group, name: str, jobs: Sequence[Job]) -> None:
    """Raise StoreError if the processes read different requests (as can happen on a slow network file system)."""
    if len(set(processes.gather(digest([job[3] for job in jobs])))) > 1:
        raise StoreError(
            f"generate.{name}: the processes read different requests. Check that all machines share the run folder and "
            "the source of the requests, and run the same command again."
        )


def _total(counts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sum the counts of all processes; of `seconds` and `long_prompts`, take the maximum."""
    total: dict[str, Any] = {key: sum(each[key] for each in counts) for key in OUTCOMES}
    for key in ("long_prompts", "seconds"):
        values = [each[key] for each in counts if key in each]
        total |= {key: max(values)} if values else {}
    return total


def _make(table: Table, recipe: Recipe, name: str, units: list[Batch], stores: tuple[Store, Store]) -> dict[str, Any]:
    """Make the batches by the current engine. Returns counts, seconds and the names of the new parts.

    stores: the run, and the run whose inputs/ table holds the input images.
    """
    made: dict[str, Any] = dict.fromkeys(OUTCOMES, 0) | {"parts": []}
    engine = engines.current()

    def keep(done: Sequence[Batch], result: dict[str, Any] | engines.Lost) -> None:
        if isinstance(result, engines.Lost):
            result = _write_lost(table, recipe.generate[name], done, result.reason)
        for key, value in result.items():
            made[key] = made[key] + value if key in made else value

    if units:
        arguments = (table, recipe, name, *stores)
        engine.spread(engines.Work(f"generate {name}", Maker, arguments, recipe.generate[name].device), units, keep)
        made["seconds"] = round(made.get("seconds", 0.0) / engine.width, 2)
    return made


def _write_lost(table: Table, settings: Generate, units: Sequence[Batch], reason: str) -> dict[str, Any]:
    """Write a row with the reason for each candidate of batches that no worker could make. Returns counts."""
    jobs = [job for unit in units for job in unit.jobs if job[3] not in unit.done]
    error = {"error": reason}
    table.append([candidate_row(to_candidate(job, error, settings)) for job in jobs])
    return {"failed": len(jobs)}


class Maker:
    """A worker that holds a generator, and appends the candidates that it makes to the table."""

    def __init__(self, table: Table, recipe: Recipe, name: str, store: Store, inputs: Store) -> None:
        set_background(recipe.background)
        self.table, self.name, self.settings = table, name, recipe.generate[name]
        model = model_of(store, recipe, self.settings)
        self.call = open_generator(model, self.settings, Inputs(model.inputs, inputs))

    def do(self, units: Sequence[Batch]) -> dict[str, Any]:
        """Make the candidates. Returns counts, seconds and the names of the new parts."""
        counts: dict[str, Any] = dict.fromkeys(OUTCOMES, 0)
        before = len(self.table.written)
        counts |= self._count_truncated(units[0].prompts)
        start = time.monotonic()
        _generate_batches(self.table, units, self.call, self.settings, counts)
        return counts | {"seconds": time.monotonic() - start, "parts": self.table.written[before:]}

    def _count_truncated(self, prompts: Sequence[str]) -> dict[str, int]:
        """Warn about prompts that the text encoders truncate, and count them."""
        count, limit = getattr(self.call, "too_long", lambda _: (0, 0))(prompts)
        if not count:
            return {}
        from prefkit.models.long_prompts import truncation_warning

        remedy = getattr(self.call, "remedy", "")
        warn(truncation_warning(f"generate {self.name}", count, len(prompts), limit, remedy))
        return {"long_prompts": count}


def _generate_batches(
    table: Table, batches: Sequence[Batch], call: Any, settings: Generate, counts: dict[str, Any]
) -> None:
    """Generate and encode candidates, and write them to the table every FLUSH_ROWS rows or FLUSH_SECONDS.

    call: the function from open_generator. Raises PrefkitError if a whole `fresh` batch fails.
    """
    waiting: list[Future[Candidate]] = []
    written, size = time.monotonic(), settings.batch_size

    def write() -> None:
        candidates = [future.result() for future in waiting]
        waiting.clear()
        for candidate in candidates:
            counts[outcome(candidate)] += 1
        table.append([candidate_row(candidate) for candidate in candidates])

    with ThreadPoolExecutor(2) as pool, Progress(f"generate {table.folder.name}", sum(map(len, batches))) as progress:
        try:
            for batch in batches:
                results, size = answer(call, batch.jobs, size)
                futures = [
                    pool.submit(to_candidate, job, result, settings)
                    for job, result in zip(batch.jobs, results)
                    if job[3] not in batch.done
                ]
                if batch.fresh:
                    first = [future.result() for future in futures]
                    if all(outcome(c) == "failed" for c in first):  # before anything is written
                        raise PrefkitError(
                            f"generate {table.folder.name}: every candidate of the first batch failed: {first[0].error}"
                        )
                for future in futures:
                    waiting.append(future)
                    if len(waiting) >= FLUSH_ROWS or time.monotonic() - written > FLUSH_SECONDS:
                        write()
                        written = time.monotonic()
                progress.update(len(batch))
        finally:
            write()


def outcome(candidate: Candidate) -> str:
    """Return "made", "flagged" (blanked by the safety checker) or "failed"."""
    if candidate.error is None:
        return "made"
    return "flagged" if candidate.error.startswith(FLAGGED) else "failed"


def answer(call: Any, batch: Sequence[Job], size: int) -> tuple[list[dict[str, Any]], int]:
    """Return (one result per job, batch size); the size is halved whenever memory runs out.

    If another error occurs, each job is tried alone, and the error becomes the result of the jobs that fail.
    """
    results: list[dict[str, Any]] = []
    while len(results) < len(batch):
        part = batch[len(results) : len(results) + size]
        rows: list[dict[str, Any]] = []
        try:
            rows = call([job[0] for job in part], [job[2] for job in part])
        except PrefkitError:
            raise
        except Exception as error:
            if not out_of_memory(error) and len(part) > 1:
                rows = [answer(call, [job], 1)[0][0] for job in part]
            elif not out_of_memory(error):
                rows = [{"error": error_summary(error)}]
            elif len(part) == 1:
                rows = [{"error": f"out of memory with a batch of 1: {error}"}]
        if not rows:  # not inside `except`: the traceback would keep tensors alive
            size = len(part) // 2
            free_memory()
            warn(f"out of memory; continuing with batches of {size}.")
            continue
        if len(part) < len(batch):
            for row in rows:
                row["extra"] = {**(row.get("extra") or {}), "batch": len(part)}
        results += rows
    return results, size


def to_candidate(job: Job, result: dict[str, Any], settings: Generate) -> Candidate:
    request, index, seed, key = job
    base: dict[str, Any] = {"id": key, "request_id": request.request_id, "index": index, "seed": seed}
    if "error" in result:
        return Candidate(**base, error=result["error"])
    payload = result.get("payload")
    if payload is not None and result.get("image") is None:  # a mesh that was not rendered
        sha256 = hashlib.sha256(payload).hexdigest()
        return Candidate(**base, sha256=sha256, payload=payload, extra=result.get("extra") or {})
    try:
        image = result.get("encoded") or encoded(result["image"], settings.format)
    except Exception as error:  # Pillow raises various errors for a mode or size that the format does not support
        return Candidate(**base, error=f"the image could not be encoded: {error_summary(error)}")
    if settings.latents and result.get("latents") is not None:
        payload = latents_payload(result["latents"])
    sha256 = hashlib.sha256(image).hexdigest()
    return Candidate(**base, image=image, sha256=sha256, payload=payload, extra=result.get("extra") or {})
