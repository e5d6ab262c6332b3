"""Passes over the images, in which several scorers share the work of reading and decoding each image.

A scorer with `concurrency` above 1 waits for a remote machine, so it gets a pass of its own, with that many concurrent
calls. An error in one scorer does not stop the others: each score has its own table, counts and failure.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from prefkit.config import Score
from prefkit.distributed import device_of
from prefkit.errors import PluginError, PrefkitError
from prefkit.models.long_prompts import truncation_warning
from prefkit.output import Progress, warn
from prefkit.plugin_guard import error_summary, guarded
from prefkit.score.core import AdaptiveBatchSize, FunctionScorer, close, decoded_batches, score_batch
from prefkit.score.embed.encoder import Encoder
from prefkit.score.overlap import in_order
from prefkit.store import Store
from prefkit.store.reader import by_request
from prefkit.store.table import Table
from prefkit.types import Candidate, candidate_schema
from prefkit.types import Score as Value

FLUSH_ROWS, FLUSH_SECONDS = 1024, 20.0
AHEAD = 4  # up to AHEAD * concurrency calls are submitted after the oldest running call
MIN_FREE = 0.5  # fraction of the device's memory that must be free for another network to join a pass


@dataclass
class Job:
    """The remaining work for one score: the ids of the candidates to score (`todo`), the scorer and the table."""

    name: str
    settings: Score
    scorer: Any
    table: Table
    generators: list[str]
    todo: set[str]
    counts: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    flushed: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    first_error: str = ""
    failure: PrefkitError | None = None
    begun: bool = False  # True if some candidates, including those of other processes, had values before
    written: list[str] = field(default_factory=list)  # names of the parts that other machines have written

    def __post_init__(self) -> None:
        self.batch_size = AdaptiveBatchSize(who=f"score {self.name}")

    @property
    def device(self) -> str:
        """Device of the weights; "cpu" for functions, which do not need the slow import of torch."""
        return "cpu" if isinstance(self.scorer, FunctionScorer) else device_of(self.settings.device)

    def load(self) -> bool:
        """Load the scorer. Return True on success; otherwise set `failure` and drop the scorer."""
        start = time.monotonic()
        try:
            with guarded(f"score {self.name}: {self.settings.use}"):
                self.scorer.load(self.device, self.settings.dtype)
        except PrefkitError as error:
            self.failure = error
        except Exception as error:
            self.failure = PluginError(
                f"score {self.name}: {self.settings.use} could not be loaded: {error_summary(error)}"
            )
            self.failure.__cause__ = error
        self.seconds += time.monotonic() - start
        if self.failure is not None:
            self.drop()
        return self.failure is None

    def drop(self) -> None:
        """Close the scorer and free its weights before the next pass loads other weights."""
        encoder = getattr(self.scorer, "encoder", None)
        if isinstance(encoder, Encoder) and encoder.cut:
            self.counts["long_prompts"] = len(encoder.cut)
            warn(truncation_warning(f"score {self.name}", len(encoder.cut), len(encoder.read), encoder.length))
        scorer, self.scorer = self.scorer, None
        close(scorer, f"score {self.name}: {self.settings.use}")

    @property
    def concurrency(self) -> int:
        return getattr(self.scorer, "concurrency", 1)

    @property
    def exclusive(self) -> bool:
        """True if the scorer needs a pass of its own."""
        return (
            self.scorer.scope == "within_request" or self.concurrency > 1 or bool(getattr(self.scorer, "alone", False))
        )

    def parts(self, items: list[tuple[str, Any]]) -> Iterator[list[tuple[str, Any]]]:
        """Split a chunk's items that this job must score into lists of (id, item), one list per call of the scorer."""
        mine = [item for item in items if item[0] in self.todo]
        whole = self.scorer.scope == "within_request"
        size = len(mine) if whole else call_size(self.scorer, self.settings.batch_size)
        for start in range(0, len(mine), max(size, 1)):
            yield mine[start : start + size]

    def encoder_key(self) -> tuple[Any, ...] | None:
        """Return the key of the scorer's encoder, None if it has no encoder. Jobs with equal keys share one network."""
        encoder = getattr(self.scorer, "encoder", None)
        return encoder.key(self.device, self.settings.dtype) if isinstance(encoder, Encoder) else None

    def score(self, items: list[tuple[str, Candidate | Value]]) -> None:
        """Score the candidates of a chunk that this job must score. An error in the scorer stops only this job."""
        start = time.monotonic()
        try:
            for part in self.parts(items):
                self.keep(part, self.call(part))
        except PrefkitError as error:
            self.failure = error
        self.seconds += time.monotonic() - start

    def call(self, part: Sequence[tuple[str, Candidate | Value]]) -> list[Value]:
        return score_batch(self.scorer, [item for _, item in part], self.batch_size)

    def keep(self, part: Sequence[tuple[str, Any]], scores: Sequence[Value]) -> None:
        for (cid, _), score in zip(part, scores):
            failed = score.error is not None or score.value is None
            self.counts["failed" if failed else "scored"] += 1
            if failed:
                self.first_error = self.first_error or score.error or ""
            aspects = json.dumps(dict(score.aspects)) if score.aspects else None
            row = {"id": cid, "value": score.value, "aspects": aspects, "text": score.text, "error": score.error}
            self.rows.append(row)
        if len(self.rows) >= FLUSH_ROWS or time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        self.table.append(self.rows)
        self.rows, self.flushed = [], time.monotonic()

    def settle(self) -> None:
        """Set `failure` if every candidate failed."""
        if self.failure is None and not self.counts["scored"] and not self.begun and self.first_error:
            self.failure = PluginError(f"score {self.name}: every candidate failed, the first with: {self.first_error}")


def call_size(scorer: Any, batch_size: int) -> int:
    """Return the maximum number of candidates per call: the scorer's `batch`, but at most the recipe's `batch_size`.

    A scorer that allows concurrent calls and does not set `batch` gets one candidate per call.
    """
    own = getattr(scorer, "batch", None) or (1 if getattr(scorer, "concurrency", 1) > 1 else batch_size)
    return min(own, batch_size)


def run_passes(store: Store, jobs: Sequence[Job]) -> None:
    """Run all jobs in as few passes as their scorers and the device's memory allow."""
    for together in loaded(jobs):
        try:
            run_pass(together, _chunks(store, together, set().union(*(job.todo for job in together))))
        finally:
            for job in together:
                job.drop()


def run_pass(jobs: list[Job], chunks: Iterator[list[Candidate]]) -> None:
    """Run jobs with loaded scorers over chunks of candidates."""
    start, before = time.monotonic(), sum(job.seconds for job in jobs)
    (_overlapped if jobs[0].concurrency > 1 else _one_pass)(jobs, chunks)
    # the time for reading and decoding is divided equally among the jobs
    shared = time.monotonic() - start - (sum(job.seconds for job in jobs) - before)
    for job in jobs:
        job.seconds += shared / len(jobs)


def loaded(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Yield the jobs of each pass with their scorers loaded.

    An `exclusive` job has a pass of its own. Any other job joins a pass if at least half of the device's memory is
    free, or if it shares an encoder with a job of that pass.
    """
    waiting = list(jobs)
    while waiting:
        together = [waiting.pop(0)]
        if not together[0].load():
            continue
        for job in list(waiting) if not together[0].exclusive else []:
            shares = job.encoder_key() is not None and job.encoder_key() in [other.encoder_key() for other in together]
            if not job.exclusive and (shares or memory_free(job.device) >= MIN_FREE):
                waiting.remove(job)
                if job.load():
                    together.append(job)
        yield together


def memory_free(device: str) -> float:
    """Return the fraction of the device's memory that is free."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()  # torch's cache counts as free
        free, total = torch.cuda.mem_get_info(device)
        return free / total
    import psutil

    memory = psutil.virtual_memory()
    return memory.available / memory.total


def _one_pass(jobs: list[Job], chunks: Iterator[list[Candidate]]) -> None:
    live = jobs
    with _progress(jobs) as progress:
        for chunk in _decoded(jobs, chunks):
            for job in live:
                job.score(chunk)
            live = [job for job in live if job.failure is None]
            if not live:
                break
            progress.update(len(chunk))


def _overlapped(jobs: list[Job], chunks: Iterator[list[Candidate]]) -> None:
    """Run one job with concurrent calls, and write its rows in the order of the candidates."""
    (job,) = jobs
    width, start = job.concurrency, time.monotonic()
    with _progress(jobs) as progress:
        parts = (part for chunk in _decoded(jobs, chunks) for part in job.parts(chunk))
        try:
            for part, scores in in_order(job.call, parts, width, AHEAD * width):
                job.keep(part, scores)
                progress.update(len(part))
        except PrefkitError as error:
            job.failure = error
    job.seconds += time.monotonic() - start


@contextmanager
def _progress(jobs: list[Job]) -> Iterator[Progress]:
    """Show progress, and write the jobs' rows even if the pass is interrupted."""
    todo = set().union(*(job.todo for job in jobs))
    with Progress(f"score {', '.join(job.name for job in jobs)}", len(todo)) as progress:
        try:
            yield progress
        finally:
            for job in jobs:
                job.flush()
    for job in jobs:
        job.settle()


def _decoded(jobs: list[Job], chunks: Iterator[list[Candidate]]) -> Iterator[list[tuple[str, Any]]]:
    """Yield chunks of (id, decoded candidate), with a failed Score for a candidate that cannot be decoded."""
    if all(getattr(job.scorer, "sends_files", False) for job in jobs):  # these scorers send the stored bytes
        yield from ([(c.id, c) for c in chunk] for chunk in chunks)
        return
    ids: list[list[str]] = []

    def with_ids_stored() -> Iterator[list[Candidate]]:
        for chunk in chunks:
            ids.append([c.id for c in chunk])
            yield chunk

    for items in decoded_batches(with_ids_stored()):
        yield list(zip(ids.pop(0), items))


def _chunks(store: Store, jobs: list[Job], todo: set[str]) -> Iterator[list[Candidate]]:
    """Yield the candidates to score in chunks of one request (scope within_request) or of the largest batch size."""
    generators, columns = generators_of(jobs), columns_of(jobs)
    if jobs[0].scorer.scope == "within_request":
        yield from by_request(store, generators, todo, columns)
        return
    size = chunk_size(jobs)
    candidates = store.iter_candidates(generators, todo, columns)
    while chunk := list(islice(candidates, size)):
        yield chunk


def chunk_size(jobs: Sequence[Job]) -> int:
    return max(job.settings.batch_size for job in jobs)


def generators_of(jobs: Sequence[Job]) -> list[str]:
    """Return the generators whose candidates the jobs score; [] for all."""
    everywhere = any(not job.generators for job in jobs)
    return [] if everywhere else list(dict.fromkeys(name for job in jobs for name in job.generators))


def columns_of(jobs: Sequence[Job]) -> list[str]:
    """Return the columns of candidates that the scorers need."""
    payload = any("payload" in job.scorer.requires for job in jobs)
    return [name for name in candidate_schema().names if name != "payload" or payload]
