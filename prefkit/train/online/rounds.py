"""What a round asks for and holds, and its folder train/NAME/rounds/NNNN, which is itself a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from prefkit.config import Generate
from prefkit.generate.generators import candidate_seed
from prefkit.score.scorer_set import Scores
from prefkit.store import Store
from prefkit.store.files import write_json
from prefkit.store.litter import remove
from prefkit.store.rows import candidate_row
from prefkit.train.monitor.sample_monitor import SampleSpec
from prefkit.train.online.rollout import Chains
from prefkit.types import Candidate, Request, digest

GENERATOR = "policy"
LARGEST_SHARE = 0.2


@dataclass
class Round:
    """One round. `asked` are its samples, group after group; `own` the numbers of those that this process made.

    chains and candidates are those of `own`, in that order; rewards, advantages [N] float64, NaN = left out; scores [N] of
    every alias, NaN = failed.
    """

    number: int
    asked: list[SampleSpec]
    own: list[int]
    chains: Chains | None = None
    candidates: list[Candidate] = field(default_factory=list)
    masks: dict[int, Any] = field(default_factory=dict)
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    rewards: np.ndarray = field(default_factory=lambda: np.empty(0))
    advantages: np.ndarray = field(default_factory=lambda: np.empty(0))

    @property
    def groups(self) -> np.ndarray:
        """[N] number of each sample's group."""
        ids = list(dict.fromkeys(a.request.request_id for a in self.asked))
        return np.array([ids.index(a.request.request_id) for a in self.asked])

    @property
    def requests(self) -> list[str]:
        return [a.request.request_id for a in self.asked]


def set_aside(requests: Sequence[Request], count: int) -> tuple[list[Request], list[Request]]:
    """(trained on, watched): `count` requests by the hash of their prompt, at most a fifth."""
    most = min(count, int(LARGEST_SHARE * len(requests)))
    ordered = sorted(requests, key=lambda r: digest("watch", r.prompt, r.request_id))
    watched = {r.request_id for r in ordered[:most]}
    return [r for r in requests if r.request_id not in watched], ordered[:most]


def asked_in(number: int, requests: Sequence[Request], per_round: int, samples: int, seed: int) -> list[SampleSpec]:
    """The samples of a round: requests in an order that is shuffled per pass over all of them; new seeds every round."""
    found = []
    for place in range(number * per_round, (number + 1) * per_round):
        epoch, at = divmod(place, len(requests))
        request = requests[int(np.random.default_rng([seed, epoch]).permutation(len(requests))[at])]
        first = epoch * samples
        found += [
            SampleSpec(request, index, candidate_seed(seed, request.request_id, first + index))
            for index in range(samples)
        ]
    return found


def shares(asked: Sequence[SampleSpec], samples: int, rank: int, count: int) -> list[int]:
    """Numbers of this process's samples: whole groups, dealt out in turn."""
    return [i for i in range(len(asked)) if i // samples % count == rank]


def folder_of(train: Path, number: int) -> Path:
    return train / "rounds" / f"{number:04d}"


class Kept:
    """Writes rounds as run-shaped folders."""

    def __init__(self, train: Path, generator: Generate, specs: Mapping[str, Mapping[str, Any]], keep: int) -> None:
        self.train, self.generator, self.specs, self.keep = train, generator, specs, keep

    def fresh(self, number: int) -> None:
        """Nothing of an earlier try at this round, or of rounds after it, stays."""
        for path in (self.train / "rounds").glob("*"):
            if path.name.isdigit() and int(path.name) >= number:
                remove(path)

    def begin(self, round_: Round, spec: Mapping[str, Any]) -> Store:
        store = Store.create(folder_of(self.train, round_.number))
        store.write_requests({a.request.request_id: a.request for a in round_.asked}.values())
        write_json(store.candidates(GENERATOR).folder / "spec.json", spec)
        for alias, pinned in self.specs.items():
            write_json(store.scores(alias).folder / "spec.json", pinned)
        return store

    def write(self, round_: Round, scores: Scores) -> None:
        """This process's candidates and scores, as parts of their tables."""
        store = Store(folder_of(self.train, round_.number))
        requests = {a.request.request_id: a.request for a in round_.asked}
        rows = [candidate_row(c) for c in round_.candidates]
        for row, candidate in zip(rows, round_.candidates, strict=True):
            if candidate.extra == requests[candidate.request_id].extra:
                row["extra"] = "{}"
        store.candidates(GENERATOR).append(rows)
        for alias, found in scores.items():
            store.scores(alias).append(
                [
                    {
                        "id": c.id,
                        "value": s.value,
                        "aspects": json.dumps(dict(s.aspects)) if s.aspects else None,
                        "text": s.text,
                        "error": s.error,
                    }
                    for c, s in zip(round_.candidates, found, strict=True)
                ]
            )

    def forget(self, number: int) -> None:
        """Rounds older than those to keep."""
        if self.keep:
            for path in (self.train / "rounds").glob("*"):
                if path.name.isdigit() and int(path.name) <= number - self.keep:
                    remove(path)
