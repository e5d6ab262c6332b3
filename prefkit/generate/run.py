"""The generate stage: wanted ids minus present ids, in fixed blocks, images encoded beside the next batch."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from prefkit.config import Generate, Model, Recipe, bounds, compatibility
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
from prefkit.models.load.trained import trained_model
from prefkit.models.memory import free_memory, out_of_memory
from prefkit.output import Progress, note, warn
from prefkit.plugin_guard import error_summary
from prefkit.store import Store
from prefkit.store.rows import candidate_row
from prefkit.store.table import Table, note_pace
from prefkit.types import Candidate, Request, digest

FLUSH_ROWS, FLUSH_SECONDS = 256, 20.0
MOST_CANDIDATES = 20_000_000  # of one generator: more ids than a plan can hold in memory
FORMATS = ("png", "webp")
OWN = ("made", "failed", "flagged")  # counts of one process; the others are of the table
Job = tuple[Request, int, int, str]  # request, index, seed, candidate id


def sync_requests(store: Store, recipe: Recipe) -> list[Request]:
    """The recipe's requests; the run keeps those that it had, with their splits. Without a source, those of the run.

    Raises UsageError where a request of the run has changed under its id.
    """
    known = store.requests()
    if not recipe.requests.source and known:
        return known
    read = read_requests(recipe.requests, recipe.model.inputs, store)
    wanted = keep_known(known, read, store.folder)
    if {r.request_id: r for r in [*known, *wanted]} != {r.request_id: r for r in known}:
        with store.lock("requests", seconds=60):
            known = store.requests()  # another process may have added its own meanwhile
            wanted = keep_known(known, read, store.folder)
            store.write_requests({r.request_id: r for r in [*known, *wanted]}.values())
    return wanted


def checked(
    store: Store, recipe: Recipe, name: str, requests: Sequence[Request], limit: int | None
) -> tuple[list[Job], set[str], dict[str, Any]]:
    """Every wanted job in order, the ids already there, and the spec, after every check that needs no weights. A dry run
    makes them all, and writes nothing.

    Raises UsageError, PluginError, and FingerprintError where the candidates there were made with other settings.
    """
    settings = recipe.generate[name]
    check(name, recipe)
    chosen = [r for r in requests if r.split in settings.splits][:limit]
    if not chosen:
        there = ", ".join(sorted({r.split for r in requests}))
        raise UsageError(
            f"generate.{name}: no request is in the splits {', '.join(settings.splits) or '(none)'}; there are only "
            f"requests in {there}. Add prompts, lower requests.test_share, or name other splits as generate.{name}.splits."
        )
    wanted = len(chosen) * settings.n
    if wanted > MOST_CANDIDATES:
        raise UsageError(
            f"generate.{name}.n is {settings.n}: with {len(chosen):,} requests that is {wanted:,} candidates, and a run "
            f"holds at most {MOST_CANDIDATES:,}. Lower n, or give fewer requests."
        )
    model = model_of(store, recipe, settings)
    if settings.use == "diffusers" and not model.base:
        raise UsageError("model.base is not set: give a Hub id, a pipeline folder or a single file.")
    spec = generator_spec(model, settings)
    jobs = []
    for request in chosen:
        for index in range(settings.n):
            seed = candidate_seed(settings.seed, request.request_id, index)
            jobs.append((request, index, seed, candidate_id(spec, request, index, seed)))
    done = done_ids(store.candidates(name))
    if any(job[3] not in done for job in jobs):
        check_generator(model, settings)
    store.candidates(name).claim(spec, _remedy(store, name), empty=not done, write=False)
    return jobs, done, spec


def model_of(store: Store, recipe: Recipe, settings: Generate) -> Model:
    """The model that the generator starts from: the recipe's, or a result of training. Raises UsageError."""
    return recipe.model if settings.model is None else trained_model(store.folder, recipe.model, settings.model)


def _remedy(store: Store, name: str) -> str:
    return f"Use another name under generate, or remove {store.candidates(name).folder} to make it anew."


def check(name: str, recipe: Recipe) -> None:
    """Raises UsageError for invalid settings, before anything is read."""
    settings = recipe.generate[name]
    bounds.check(settings, f"generate.{name}")
    compatibility.check("generate", name, recipe)
    if settings.format not in FORMATS:
        raise UsageError(f"generate.{name}.format: {settings.format!r} is not known; choose {' or '.join(FORMATS)}.")


def done_ids(table: Table) -> set[str]:
    """Candidates that need not be made (again): those with an image, and those that the safety checker blanked."""
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
    """Generate what is missing of `recipe.generate[name]`. Returns counts. Raises PrefkitError.

    Under a launcher every process makes its share of the batches, and the counts are of all of them.
    inputs: the run whose inputs/ holds the images of these requests, default `store`.
    """
    processes = group()
    settings = recipe.generate[name]
    if requests is None:
        if not processes.alone:  # one process writes what the others then find; alone, a large source is read once
            processes.lead(lambda: sync_requests(store, recipe) and None)
        requests = sync_requests(store, recipe)
    jobs, _, spec = checked(store, recipe, name, requests, limit)
    table = store.candidates(name)
    with processes.held(store.lock(f"candidates/{name}")):
        done = done_ids(table)  # another command may have made some until it freed the lock
        processes.wait()  # all have seen what is done before the first one clears or fills the table
        processes.lead(lambda: table.claim(spec, _remedy(store, name), empty=not done))
        _check_agreed(processes, name, jobs)
        blocks = processes.share([jobs[i : i + settings.batch_size] for i in range(0, len(jobs), settings.batch_size)])
        blocks = [block for block in blocks if any(job[3] not in done for job in block)]
        counts = processes.broadcast({"wanted": len(jobs), "present": sum(job[3] in done for job in jobs)})
        missing = counts["wanted"] - counts["present"]
        if missing:
            note(f"generate {name}: {missing} candidates to make, in batches of {settings.batch_size}")

        def make() -> dict[str, Any]:
            own: dict[str, Any] = dict.fromkeys(OWN, 0)
            if not blocks:
                return own
            model = model_of(store, recipe, settings)
            call = open_generator(model, settings, Inputs(model.inputs, inputs or store))
            _warn_of_cuts(name, call, jobs, own)
            start = time.monotonic()
            _generate_blocks(table, blocks, done, call, settings, own, counts["present"])
            return own | {"seconds": round(time.monotonic() - start, 2)}

        counts |= total(processes.each(make))
        if missing:
            processes.lead(lambda: note_pace(table.folder, counts["made"], counts.get("seconds", 0.0)))
        if counts["flagged"]:
            warn(f"generate {name}: the safety checker blanked {counts['flagged']} images; they are left out.")
    return counts


def _check_agreed(processes: Group, name: str, jobs: Sequence[Job]) -> None:
    """Raises StoreError where processes see other requests than the first one, as on a slow network file system."""
    own = digest([job[3] for job in jobs])
    if len(set(processes.gather(own))) > 1:
        raise StoreError(f"generate.{name}: the processes do not see the same requests. Are the run folder and the source of "
                         "the requests shared by all machines? Run the same command again.")  # fmt: skip


def total(counts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts of all processes, summed; `seconds` is the longest."""
    found = {key: sum(own[key] for own in counts) for key in OWN}
    cut = [own["long_prompts"] for own in counts if "long_prompts" in own]
    found |= {"long_prompts": max(cut)} if cut else {}
    seconds = [own["seconds"] for own in counts if "seconds" in own]
    return found | ({"seconds": max(seconds)} if seconds else {})


def _warn_of_cuts(name: str, call: Any, jobs: Sequence[Job], counts: dict[str, Any]) -> None:
    """Say once how many prompts the text encoders do not read to the end. call: open_generator's."""
    prompts = list({job[0].prompt for job in jobs})
    count, limit = getattr(call, "too_long", lambda _: (0, 0))(prompts)
    if count:
        from prefkit.models.long_prompts import said

        counts["long_prompts"] = count
        warn(said(f"generate {name}", count, len(prompts), limit))


def _generate_blocks(
    table: Table,
    blocks: list[list[Job]],
    done: set[str],
    call: Any,
    settings: Generate,
    counts: dict[str, Any],
    present: int,
) -> None:
    """present: candidates that were there before. Without any, a first batch that fails whole ends the stage."""
    writer, first = Writer(table, counts), True
    with ThreadPoolExecutor(2) as pool, Progress(f"generate {table.folder.name}", sum(map(len, blocks))) as progress:
        try:
            size = settings.batch_size
            for block in blocks:
                results, size = answer(call, block, size)
                made = [
                    pool.submit(to_candidate, job, result, settings)
                    for job, result in zip(block, results)
                    if job[3] not in done
                ]
                if first and not present:
                    _check_first(table, made)
                first = False
                for future in made:
                    writer.put(future)
                progress.update(len(block))
        finally:
            writer.close()


def _check_first(table: Table, made: Sequence[Future[Candidate]]) -> None:
    """Raises PrefkitError where every candidate of the first batch failed, before anything is written."""
    candidates = [future.result() for future in made]
    if all(outcome(c) == "failed" for c in candidates):
        error = candidates[0].error
        raise PrefkitError(f"generate {table.folder.name}: every candidate of the first batch failed: {error}")


def outcome(candidate: Candidate) -> str:
    """ "made", "flagged" by the safety checker, or "failed", also where the image could not be encoded."""
    if candidate.error is None:
        return "made"
    return "flagged" if candidate.error.startswith(FLAGGED) else "failed"


def answer(call: Any, block: Sequence[Job], size: int) -> tuple[list[dict[str, Any]], int]:
    """One result a job. Out of memory halves the batch (for good); any other failure is pinned on its item."""
    results: list[dict[str, Any]] = []
    while len(results) < len(block):
        part = block[len(results) : len(results) + size]
        found: list[dict[str, Any]] = []
        try:
            found = call([job[0] for job in part], [job[2] for job in part])
        except PrefkitError:
            raise
        except Exception as error:
            if not out_of_memory(error):
                found = one_by_one(call, part) if len(part) > 1 else [{"error": error_summary(error)}]
            elif len(part) == 1:
                found = [{"error": f"out of memory with a batch of 1: {error}"}]
        if not found:  # outside of `except`, whose traceback would keep the tensors
            size = len(part) // 2
            free_memory()
            warn(f"out of memory; going on with batches of {size}.")
            continue
        if len(part) < len(block):
            for result in found:
                result["extra"] = {**(result.get("extra") or {}), "batch": len(part)}
        results += found
    return results, size


def one_by_one(call: Any, part: Sequence[Job]) -> list[dict[str, Any]]:
    return [result for job in part for result in answer(call, [job], 1)[0]]


def to_candidate(job: Job, result: dict[str, Any], settings: Generate) -> Candidate:
    request, index, seed, cid = job
    base: dict[str, Any] = {"id": cid, "request_id": request.request_id, "index": index, "seed": seed}
    if "error" in result:
        return Candidate(**base, error=result["error"])
    try:
        image = result.get("encoded") or encoded(result["image"], settings.format)
    except Exception as error:  # Pillow raises what it likes for a mode or a size that the format has not
        return Candidate(**base, error=f"the image could not be encoded: {error_summary(error)}")
    payload = result.get("payload")
    if settings.latents and result.get("latents") is not None:
        payload = latents_payload(result["latents"])
    sha256 = hashlib.sha256(image).hexdigest()
    return Candidate(**base, image=image, sha256=sha256, payload=payload, extra=result.get("extra") or {})


class Writer:
    """Collects candidates as they are encoded, counts them by `outcome`, and writes a part every FLUSH_ROWS rows or
    FLUSH_SECONDS."""

    def __init__(self, table: Table, counts: dict[str, Any]) -> None:
        self.table, self.counts, self.last = table, counts, time.monotonic()
        self.waiting: list[Future[Candidate]] = []

    def put(self, future: Future[Candidate]) -> None:
        self.waiting.append(future)
        if len(self.waiting) >= FLUSH_ROWS or time.monotonic() - self.last > FLUSH_SECONDS:
            self.close()

    def close(self) -> None:
        found = [future.result() for future in self.waiting]
        self.waiting = []
        for candidate in found:
            self.counts[outcome(candidate)] += 1
        self.table.append([candidate_row(candidate) for candidate in found])
        self.last = time.monotonic()
