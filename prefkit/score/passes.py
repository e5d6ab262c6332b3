"""One pass over the images for several scorers: each image is read and decoded once, whoever looks at it.

A scorer with `concurrency` above 1 waits for another machine: it has a pass of its own, with so many calls at once. Every alias keeps its own table, counts and failures: a scorer that breaks stops alone.
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
from prefkit.store.by_request import by_request
from prefkit.store.table import Table
from prefkit.types import Candidate, candidate_schema
from prefkit.types import Score as Value

FLUSH_ROWS, FLUSH_SECONDS = 1024, 20.0
AHEAD = 4  # times `concurrency`: answers kept while the oldest call is waited for
ROOM = 0.5  # share of the device's memory that must be free for another network to join a pass


@dataclass
class Job:
    """One alias and what it has still to score."""

    alias: str
    settings: Score
    scorer: Any
    table: Table
    generators: list[str]
    todo: set[str]
    counts: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    flushed: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    first: str = ""  # reason of the first failure
    failure: PrefkitError | None = None

    def __post_init__(self) -> None:
        self.room = AdaptiveBatchSize(who=f"score {self.alias}")

    @property
    def device(self) -> str:
        """Of its weights; a function has none, and is not kept waiting for torch."""
        return "cpu" if isinstance(self.scorer, FunctionScorer) else device_of(self.settings.device)

    def load(self) -> bool:
        """Whether it failed; `failure` says why."""
        start = time.monotonic()
        try:
            with guarded(f"score {self.alias}: {self.settings.use}"):
                self.scorer.load(self.device, self.settings.dtype)
        except PrefkitError as error:
            self.failure = error
        except Exception as error:
            self.failure = PluginError(
                f"score {self.alias}: {self.settings.use} could not be loaded: {error_summary(error)}"
            )
            self.failure.__cause__ = error
        self.seconds += time.monotonic() - start
        return self.failure is not None

    def drop(self) -> None:
        """End what is under way elsewhere; its weights go before the next pass loads."""
        encoder = getattr(self.scorer, "encoder", None)
        if isinstance(encoder, Encoder) and encoder.cut:
            self.counts["long_prompts"] = len(encoder.cut)
            length = encoder.network.inner.length
            warn(truncation_warning(f"score {self.alias}", len(encoder.cut), len(encoder.read), length))
        scorer, self.scorer = self.scorer, None
        close(scorer, f"score {self.alias}: {self.settings.use}")

    @property
    def concurrency(self) -> int:
        return getattr(self.scorer, "concurrency", 1)

    def parts(self, items: list[tuple[str, Any]]) -> Iterator[list[tuple[str, Any]]]:
        """What is this job's of a chunk of (id, item), call by call."""
        mine = [item for item in items if item[0] in self.todo]
        size = len(mine)
        if self.scorer.scope != "within_request":
            own = getattr(self.scorer, "batch", None) or (1 if self.concurrency > 1 else self.settings.batch_size)
            size = min(own, self.settings.batch_size)
        for at in range(0, len(mine), max(size, 1)):
            yield mine[at : at + size]

    def encoder(self) -> tuple[Any, ...] | None:
        """What its encoder is shared by, if it has one."""
        encoder = getattr(self.scorer, "encoder", None)
        if not isinstance(encoder, Encoder):
            return None
        return encoder.key(self.device, self.settings.dtype)

    def score(self, items: list[tuple[str, Candidate | Value]]) -> None:
        """Score what is this job's of a chunk. A plug-in that breaks its contract stops this job."""
        start = time.monotonic()
        try:
            for part in self.parts(items):
                self.keep(part, self.call(part))
        except PrefkitError as error:
            self.failure = error
        self.seconds += time.monotonic() - start

    def call(self, part: Sequence[tuple[str, Candidate | Value]]) -> list[Value]:
        return score_batch(self.scorer, [item for _, item in part], self.room)

    def keep(self, part: Sequence[tuple[str, Any]], scores: Sequence[Value]) -> None:
        for (cid, _), score in zip(part, scores):
            self._keep(cid, score)
        if len(self.rows) >= FLUSH_ROWS or time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def _keep(self, cid: str, score: Value) -> None:
        failed = score.error is not None or score.value is None
        self.counts["failed" if failed else "scored"] += 1
        self.first = self.first or (score.error or "" if failed else "")
        aspects = json.dumps(dict(score.aspects)) if score.aspects else None
        self.rows.append(
            {"id": cid, "value": score.value, "aspects": aspects, "text": score.text, "error": score.error}
        )

    def flush(self) -> None:
        self.table.append(self.rows)
        self.rows, self.flushed = [], time.monotonic()

    def settle(self) -> None:
        """Set `failure` where nothing at all could be scored."""
        if self.failure is None and self.counts["scored"] == self.counts["present"] == 0 and self.first:
            self.failure = PluginError(f"score {self.alias}: every candidate failed, the first with: {self.first}")


def run_passes(store: Store, jobs: Sequence[Job]) -> None:
    """Score all jobs in as few passes as their kinds and the memory allow."""
    for together in loaded(jobs):
        start, before = time.monotonic(), sum(job.seconds for job in together)
        try:
            (_overlapped if together[0].concurrency > 1 else _one_pass)(store, together)
        finally:
            for job in together:
                job.drop()
        # reading and decoding is everybody's
        shared = time.monotonic() - start - (sum(job.seconds for job in together) - before)
        for job in together:
            job.seconds += shared / len(together)


def loaded(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Jobs with their scorers loaded, pass by pass.

    A scorer within requests needs other batches, one with `concurrency` waits for another machine, and one that sets
    `alone` fills the device: each goes by itself. The others join while half of the device is free; one whose encoder is there already, always.
    """
    waiting = list(jobs)
    while waiting:
        taken = [waiting.pop(0)]
        if taken[0].load():
            taken[0].drop()
            continue
        for job in list(waiting) if _sociable(taken[0]) else []:
            shares = job.encoder() is not None and job.encoder() in [other.encoder() for other in taken]
            if _sociable(job) and (shares or memory_free(job.device) >= ROOM):
                waiting.remove(job)
                if job.load():
                    job.drop()
                else:
                    taken.append(job)
        yield taken


def _sociable(job: Job) -> bool:
    scorer = job.scorer
    waits = getattr(scorer, "concurrency", 1) > 1
    return scorer.scope != "within_request" and not waits and not getattr(scorer, "alone", False)


def memory_free(device: str) -> float:
    """Share of the memory of `device` that is free."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()  # what torch holds for later is free
        free, total = torch.cuda.mem_get_info(device)
        return free / total
    import psutil

    memory = psutil.virtual_memory()
    return memory.available / memory.total


def _one_pass(store: Store, jobs: list[Job]) -> None:
    live = jobs
    with _progress(jobs) as progress:
        for chunk in _decoded(store, jobs):
            for job in live:
                job.score(chunk)
            live = [job for job in live if job.failure is None]
            if not live:
                break
            progress.update(len(chunk))


def _overlapped(store: Store, jobs: list[Job]) -> None:
    """One job, with several calls at once; rows are written in the order of the candidates."""
    (job,) = jobs
    width, start = job.concurrency, time.monotonic()
    with _progress(jobs) as progress:
        parts = (part for chunk in _decoded(store, jobs) for part in job.parts(chunk))
        try:
            for part, scores in in_order(job.call, parts, width, AHEAD * width):
                job.keep(part, scores)
                progress.update(len(part))
        except PrefkitError as error:
            job.failure = error
    job.seconds += time.monotonic() - start


@contextmanager
def _progress(jobs: list[Job]) -> Iterator[Progress]:
    """Whatever ends the pass, what the jobs have is written."""
    todo = set().union(*(job.todo for job in jobs))
    with Progress(f"score {', '.join(job.alias for job in jobs)}", len(todo)) as progress:
        try:
            yield progress
        finally:
            for job in jobs:
                job.flush()
    for job in jobs:
        job.settle()


def _decoded(store: Store, jobs: list[Job]) -> Iterator[list[tuple[str, Any]]]:
    """(id, candidate) in chunks; an undecodable candidate has become a bare Score.

    Nothing is decoded for scorers that set `sends_files`: they want the bytes as stored, and look whether those are whole.
    """
    todo = set().union(*(job.todo for job in jobs))
    if all(getattr(job.scorer, "sends_files", False) for job in jobs):
        yield from ([(c.id, c) for c in chunk] for chunk in _chunks(store, jobs, todo))
        return
    ids: list[list[str]] = []
    for items in decoded_batches(_remembered(_chunks(store, jobs, todo), ids)):
        yield list(zip(ids.pop(0), items))


def _remembered(chunks: Iterator[list[Candidate]], ids: list[list[str]]) -> Iterator[list[Candidate]]:
    for chunk in chunks:
        ids.append([c.id for c in chunk])
        yield chunk


def _chunks(store: Store, jobs: list[Job], todo: set[str]) -> Iterator[list[Candidate]]:
    """Whole requests for a scorer within requests; else as many candidates as the largest batch."""
    everywhere = any(not job.generators for job in jobs)
    generators = [] if everywhere else list(dict.fromkeys(name for job in jobs for name in job.generators))
    payload = any("payload" in job.scorer.requires for job in jobs)
    columns = [name for name in candidate_schema().names if name != "payload" or payload]
    if jobs[0].scorer.scope == "within_request":
        yield from by_request(store, generators, todo, columns)
        return
    size = max(job.settings.batch_size for job in jobs)
    candidates = store.iter_candidates(generators, todo, columns)
    while chunk := list(islice(candidates, size)):
        yield chunk
