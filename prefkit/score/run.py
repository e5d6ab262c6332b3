"""The score stage: one table per alias, filled with what is missing."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

from prefkit.config import Recipe, Score
from prefkit.errors import PluginError, UsageError
from prefkit.models.place import device_of, rank
from prefkit.output import Progress, note
from prefkit.score.core import decoded_batches, make_scorer, missing_keys, score_batch
from prefkit.store import Store, Table, note_pace
from prefkit.types import Candidate, candidate_schema

FLUSH_ROWS, FLUSH_SECONDS = 1024, 20.0


def run_score(
    store: Store, recipe: Recipe, alias: str, *, generators: Sequence[str] = (), limit: int | None = None
) -> dict[str, Any]:
    """Score what has no score under this alias yet (failures are tried again). Returns counts.

    limit: at most this many candidates. Raises UsageError where the scorer requires what requests do not have,
    FingerprintError where the table was made by another scorer.
    """
    settings = recipe.score[alias]
    if settings.batch_size < 1:
        raise UsageError(f"score.{alias}.batch_size is {settings.batch_size}: it must be at least 1.")
    scorer = make_scorer(settings.use, settings.options, f"score.{alias}")
    chosen = list(generators or settings.generators)
    keys = wanted_keys(store, chosen)
    if not keys:
        raise UsageError(f"there is nothing to score in {store.folder}: run `prefkit generate {store.folder}` first.")
    from prefkit.models.load import dtype_of

    own, of = rank()
    table = store.scores(alias)
    with store.lock(f"scores/{alias}" + (f".{own}" if of > 1 else "")):
        spec = dataclasses.asdict(dataclasses.replace(scorer.spec(), dtype=settings.dtype))
        done = scored_ids(table)
        remedy = f"Use another alias under score, or remove {table.folder} to score anew."
        table.claim(spec, remedy, empty=not done)
        present = sum(key[0] in done for key in keys)
        keys = [key for key in keys if key[0] not in done][:limit]
        counts: dict[str, Any] = {"wanted": len(keys) + present, "present": present, "scored": 0, "failed": 0}
        todo = {key[0] for key in split_by_request(keys, own, of)}
        if todo:
            _check_requires(store, scorer, chosen, keys[0][0], alias)
            note(f"score {alias}: {len(todo)} candidates with {settings.use}")
            start = time.monotonic()
            dtype_of(settings.dtype)
            scorer.load(device_of(settings.device), settings.dtype)
            _score_all(store, table, scorer, settings, chosen, todo, counts)
            counts["seconds"] = round(time.monotonic() - start, 2)
            note_pace(table.folder, counts["scored"], counts["seconds"])
    return counts


def wanted_keys(store: Store, generators: Sequence[str]) -> list[tuple[str, str]]:
    """(candidate id, request id) of all candidates with an image, in stored order, without reading images."""
    unknown = sorted(set(generators) - set(store.names("candidates")))
    if unknown:
        raise UsageError(
            f"no candidates of {', '.join(unknown)} in {store.folder}; there are: {', '.join(store.names('candidates')) or 'none'}."
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


def _columns(scorer: Any) -> list[str]:
    payload = "payload" in scorer.requires
    return [name for name in candidate_schema().names if name != "payload" or payload]


def _check_requires(store: Store, scorer: Any, generators: Sequence[str], first_id: str, alias: str) -> None:
    first = next(store.iter_candidates(generators, {first_id}), None)
    if first is None:  # its part turned out to be damaged just now
        return
    lacking = missing_keys(scorer, first)
    if lacking:
        raise UsageError(
            f"score.{alias}: the scorer needs {', '.join(lacking)}, which request {first.request_id} does not have. "
            "Add a column of that name to the requests."
        )


def _batches(
    store: Store, scorer: Any, settings: Score, generators: Sequence[str], todo: set[str]
) -> Iterator[list[Candidate]]:
    candidates = store.iter_candidates(generators, todo, _columns(scorer))
    if scorer.scope == "within_request":
        by_request: dict[str, list[Candidate]] = {}
        for c in candidates:
            by_request.setdefault(c.request_id, []).append(c)
        yield from by_request.values()
        return
    batch: list[Candidate] = []
    for c in candidates:
        batch.append(c)
        if len(batch) == settings.batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _score_all(
    store: Store,
    table: Table,
    scorer: Any,
    settings: Score,
    generators: Sequence[str],
    todo: set[str],
    counts: dict[str, Any],
) -> None:
    rows: list[dict[str, Any]] = []
    last = time.monotonic()
    first_failures: list[str] = []
    with Progress(f"score {table.folder.name}", len(todo)) as progress:
        try:
            # ids travel beside the items: an undecodable candidate has become a bare Score
            plan = _Remembered(_batches(store, scorer, settings, generators, todo))
            for items in decoded_batches(plan):
                ids = plan.ids.pop(0)
                scores = score_batch(scorer, items)
                for cid, score in zip(ids, scores):
                    counts["scored" if score.error is None and score.value is not None else "failed"] += 1
                    aspects = json.dumps(dict(score.aspects)) if score.aspects else None
                    rows.append(
                        {"id": cid, "value": score.value, "aspects": aspects, "text": score.text, "error": score.error}
                    )
                if counts["scored"] == 0 and scores[0].error:
                    first_failures.append(scores[0].error)
                if len(rows) >= FLUSH_ROWS or time.monotonic() - last > FLUSH_SECONDS:
                    table.append(rows)
                    rows, last = [], time.monotonic()
                progress.update(len(items))
        finally:
            table.append(rows)
    if counts["scored"] == counts["present"] == 0 and first_failures:
        raise PluginError(f"score {table.folder.name}: every candidate failed, the first with: {first_failures[0]}")


class _Remembered:
    """An iterator of batches that keeps the ids of those handed out."""

    def __init__(self, batches: Iterator[list[Candidate]]) -> None:
        self.batches = batches
        self.ids: list[list[str]] = []

    def __iter__(self) -> _Remembered:
        return self

    def __next__(self) -> list[Candidate]:
        batch = next(self.batches)
        self.ids.append([c.id for c in batch])
        return batch
