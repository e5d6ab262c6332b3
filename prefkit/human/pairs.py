"""Selects the pairs to vote on: candidates of the same request, or images of two models at the same seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb, isqrt
from random import Random

import pandas as pd

from prefkit.errors import UsageError
from prefkit.output import shell_quoted
from prefkit.store import Store
from prefkit.store.summary import candidate_index, without_images
from prefkit.types import digest

MANY = 200  # for a request with more candidates, pairs are drawn at random without listing all pairs


@dataclass(frozen=True)
class VotePair:
    """Two candidate ids, in an order chosen by a hash, so that the position reveals nothing about the model."""

    request_id: str
    a: str
    b: str
    model_a: str = ""
    model_b: str = ""


def within_requests(store: Store, n: int, seed: int) -> list[VotePair]:
    """Choose at most n pairs by hash, each within one request, spread as evenly as possible over the requests.

    Failed, rejected and removed candidates are left out. Raises UsageError if no request has two candidates left.
    """
    frame = _shown(candidate_index(store), store)
    ranked: list[tuple[int, VotePair]] = []
    for request, members in frame.groupby("request_id", sort=True):
        ids = sorted(members.id)
        if len(ids) > MANY:
            ranked += enumerate(_drawn(str(request), ids, n, seed))
        else:
            ranked += _ranked((_ordered(str(request), a, b, seed) for a, b in combinations(ids, 2)), seed)
    if not ranked and (names := sorted(without_images(store))):
        raise UsageError(
            f"the candidates of {', '.join(names)} in {store.folder} have no pictures, which a voting page needs. "
            "Generate the meshes under another name with render: true in generate.NAME.call."
        )
    if not ranked:
        raise UsageError(
            f"no request of {store.folder} has two candidates to compare. Generate more with "
            f"`prefkit generate {shell_quoted(store.folder)} --n 4`."
        )
    return _first(ranked, n, seed)


def of_eval(store: Store, name: str, set_name: str, models: Sequence[str], n: int, seed: int) -> list[VotePair]:
    """Choose at most n pairs by hash: images of two models in an evaluation at the same request, index and seed."""
    frames = []
    for model in models:
        frame = _shown(candidate_index(Store(store.eval(name) / set_name / model)), store)
        frames.append(frame[["id", "request_id", "index", "seed"]])
    both = frames[0].merge(frames[1], on=["request_id", "index", "seed"])
    both = both[both.id_x != both.id_y]  # the ids are equal if a model is the base itself
    ranked: list[tuple[int, VotePair]] = []
    for request, members in both.groupby("request_id", sort=True):
        ids = sorted(zip(members.id_x, members.id_y))
        ranked += _ranked((_ordered(str(request), x, y, seed, *models) for x, y in ids), seed)
    if not ranked:
        raise UsageError(
            f"{' and '.join(models)} have no request and seed in common in {store.eval(name) / set_name}. Run `prefkit eval "
            f"{store.folder}` with both models first."
        )
    return _first(ranked, n, seed)


def find_set(store: Store, models: Sequence[str], name: str | None, set_name: str | None) -> tuple[str, str]:
    """Find the (evaluation, set) with images of both models. Raises UsageError if none or several match."""
    if len(models) != 2 or models[0] == models[1]:
        raise UsageError("--models must name two models of one evaluation, for example --models base,dpo.")
    sets = [
        (evaluation, folder.name)
        for evaluation in store.names("eval")
        for folder in sorted(store.eval(evaluation).iterdir())
        if folder.is_dir() and all((folder / model / "run.json").exists() for model in models)
    ]
    matches = [(e, s) for e, s in sets if name in (None, e) and set_name in (None, s)]
    if len(matches) == 1:
        return matches[0]
    choices = ", ".join(f"--eval {e} --set {s}" for e, s in matches or sets)
    if matches:
        raise UsageError(f"{' and '.join(models)} are in several evaluations; choose one: {choices}.")
    fix = f"Use {choices}." if choices else "Run `prefkit eval` first, and give the names of its models."
    raise UsageError(f"no evaluation of {store.folder} holds images of {' and '.join(models)}. {fix}")


def _shown(frame: pd.DataFrame, store: Store) -> pd.DataFrame:
    decisions = store.decisions()
    hidden = set(decisions[decisions.verdict != "keep"].id.astype(str))
    return frame[frame.error.isna() & ~frame.id.isin(hidden) & ~frame.generator.isin(without_images(store))]


def _ordered(request: str, a: str, b: str, seed: int, model_a: str = "", model_b: str = "") -> VotePair:
    if int(digest("side", seed, a, b), 16) % 2:
        return VotePair(request, b, a, model_b, model_a)
    return VotePair(request, a, b, model_a, model_b)


def _ranked(pairs: Iterable[VotePair], seed: int) -> Iterable[tuple[int, VotePair]]:
    """Number the pairs of one request in the order of a hash."""
    return enumerate(sorted(pairs, key=lambda p: digest("pair", seed, *sorted((p.a, p.b)))))


def _drawn(request: str, ids: Sequence[str], n: int, seed: int) -> list[VotePair]:
    """Draw n pairs of one request without listing all its pairs: 20,000 images have 200 million pairs."""
    total = comb(len(ids), 2)
    chosen = Random(digest("drawn", seed, request)).sample(range(total), min(n, total))
    later = [
        (1 + isqrt(1 + 8 * k)) // 2 for k in chosen
    ]  # second index of the k-th pair in (0, 1), (0, 2), (1, 2), ...
    return [_ordered(request, ids[k - comb(j, 2)], ids[j], seed) for k, j in zip(chosen, later)]


def _first(ranked: list[tuple[int, VotePair]], n: int, seed: int) -> list[VotePair]:
    """Return the first n pairs, with every request's first pair before the second pair of any request."""
    order = sorted(ranked, key=lambda item: (item[0], digest("request", seed, item[1].request_id)))
    return [pair for _, pair in order[:n]]
