"""Which two pictures are shown side by side: candidates of one request, or base against tuned at equal seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb, isqrt
from random import Random
from typing import TYPE_CHECKING

from prefkit.errors import UsageError
from prefkit.output import shell_quoted
from prefkit.store import Store
from prefkit.store.frames import candidate_index
from prefkit.types import digest

MANY = 200  # candidates of one request whose pairs are drawn instead of ranked
if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class VotePair:
    """a and b are candidate ids in an order that a hash chose, so that the place says nothing about the model."""

    request_id: str
    a: str
    b: str
    model_a: str = ""
    model_b: str = ""


def within_requests(store: Store, n: int, seed: int) -> list[VotePair]:
    """At most n pairs of candidates that answer one request, as evenly over the requests as possible, chosen by hash.

    Failed, rejected and removed candidates are never shown. Raises UsageError where no request has two others.
    """
    frame = _shown(candidate_index(store), store)
    found = []
    for request, members in frame.groupby("request_id", sort=True):
        ids = sorted(members.id)
        if len(ids) > MANY:
            found += list(enumerate(_drawn(str(request), ids, n, seed)))
        else:
            found += _ranked([_ordered(str(request), a, b, seed) for a, b in combinations(ids, 2)], seed)
    if not found:
        raise UsageError(
            f"no request of {store.folder} has two candidates to compare. `prefkit generate {shell_quoted(store.folder)} --n 4` makes some."
        )
    return _first(found, n, seed)


def of_eval(store: Store, name: str, set_name: str, models: Sequence[str], n: int, seed: int) -> list[VotePair]:
    """At most n pairs of two models of an evaluation, each at one request, index and seed, chosen by hash."""
    frames = []
    for model in models:
        folder = Store(store.eval(name) / set_name / model)
        frame = _shown(candidate_index(folder), store)
        frames.append(frame[["id", "request_id", "index", "seed"]])
    both = frames[0].merge(frames[1], on=["request_id", "index", "seed"])
    found = []
    for request, members in both.groupby("request_id", sort=True):
        pairs = [
            _ordered(str(request), x, y, seed, *models)
            for x, y in sorted(zip(members.id_x, members.id_y))
            if x != y  # a model that is the base itself
        ]
        found += _ranked(pairs, seed)
    if not found:
        raise UsageError(
            f"{' and '.join(models)} share no request and seed in {store.eval(name) / set_name}. Run `prefkit eval "
            f"{store.folder}` with both models first."
        )
    return _first(found, n, seed)


def find_set(store: Store, models: Sequence[str], name: str | None, set_name: str | None) -> tuple[str, str]:
    """(evaluation, set) that holds images of both models. Raises UsageError where none or several do."""
    if len(models) != 2 or models[0] == models[1]:
        raise UsageError("--models wants two names of one evaluation, as in --models base,dpo.")
    every = [
        (found, folder.name)
        for found in store.names("eval")
        for folder in sorted(store.eval(found).iterdir())
        if folder.is_dir() and all((folder / model / "run.json").exists() for model in models)
    ]
    fits = [(e, s) for e, s in every if name in (None, e) and set_name in (None, s)]
    if len(fits) == 1:
        return fits[0]
    there = ", ".join(f"--eval {e} --set {s}" for e, s in fits or every)
    if fits:
        raise UsageError(f"{' and '.join(models)} are in several evaluations; choose one: {there}.")
    raise UsageError(
        f"no evaluation of {store.folder} holds images of {' and '.join(models)}"
        + (f"; there is {there}." if there else ". Run `prefkit eval` first; its models are the names to give.")
    )


def _shown(frame: pd.DataFrame, store: Store) -> pd.DataFrame:
    decided = store.decisions()
    hidden = set(decided[decided.verdict != "keep"].id.astype(str))
    return frame[frame.error.isna() & ~frame.id.isin(hidden)]


def _ordered(request: str, a: str, b: str, seed: int, model_a: str = "", model_b: str = "") -> VotePair:
    if int(digest("side", seed, a, b), 16) % 2:
        return VotePair(request, b, a, model_b, model_a)
    return VotePair(request, a, b, model_a, model_b)


def _ranked(pairs: list[VotePair], seed: int) -> list[tuple[int, VotePair]]:
    """The pairs of one request with their places in the order of a hash."""
    return list(enumerate(sorted(pairs, key=lambda p: digest("pair", seed, *sorted((p.a, p.b))))))


def _drawn(request: str, ids: Sequence[str], n: int, seed: int) -> list[VotePair]:
    """n of the pairs of one request, without making them all: 20,000 images under one prompt are 200 million."""
    chosen = Random(digest("drawn", seed, request)).sample(range(comb(len(ids), 2)), min(n, comb(len(ids), 2)))
    later = [(1 + isqrt(1 + 8 * k)) // 2 for k in chosen]  # the k-th of (0, 1), (0, 2), (1, 2), (0, 3), ...
    return [_ordered(request, ids[k - comb(j, 2)], ids[j], seed) for k, j in zip(chosen, later)]


def _first(ranked: list[tuple[int, VotePair]], n: int, seed: int) -> list[VotePair]:
    """Every request's first pair before any request's second one."""
    order = sorted(ranked, key=lambda item: (item[0], digest("request", seed, item[1].request_id)))
    return [pair for _, pair in order[:n]]
