"""Rounds of online training. Each round has a run folder, train/NAME/rounds/NNNN, for samples and scores."""

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
from prefkit.store.table import candidate_row
from prefkit.train.monitor.sample_monitor import SampleSpec
from prefkit.train.online.rollout import Chains
from prefkit.types import Candidate, Request, digest

GENERATOR = "policy"
LARGEST_SHARE = 0.2


@dataclass
class Round:
    """One round. samples: all processes' samples, group after group; local: indices of this process's samples.

    chains, candidates: one per sample in `local`, in the order of `local`. rewards, advantages: [N] float64, NaN = left
    out; scores: [N] per score name, NaN = failed; masks: mask by sample index.
    """

    number: int
    samples: list[SampleSpec]
    local: list[int]
    chains: Chains | None = None
    candidates: list[Candidate] = field(default_factory=list)
    masks: dict[int, Any] = field(default_factory=dict)
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    rewards: np.ndarray = field(default_factory=lambda: np.empty(0))
    advantages: np.ndarray = field(default_factory=lambda: np.empty(0))

    @property
    def groups(self) -> np.ndarray:
        """The group index of each sample, [N]."""
        ids = list(dict.fromkeys(self.request_ids))
        return np.array([ids.index(request_id) for request_id in self.request_ids])

    @property
    def request_ids(self) -> list[str]:
        return [sample.request.request_id for sample in self.samples]

    @property
    def rows(self) -> dict[int, int]:
        """The row of each local sample in chains and candidates, by sample index."""
        return {index: row for row, index in enumerate(self.local)}


def split_watched(requests: Sequence[Request], count: int) -> tuple[list[Request], list[Request]]:
    """Split requests into (trained on, watched). A hash selects `count` watched requests, but at most a fifth."""
    most = min(count, int(LARGEST_SHARE * len(requests)))
    ordered = sorted(requests, key=lambda r: digest("watch", r.prompt, r.request_id))
    watched = {r.request_id for r in ordered[:most]}
    return [r for r in requests if r.request_id not in watched], ordered[:most]


def samples_of_round(
    number: int, requests: Sequence[Request], per_round: int, samples: int, seed: int
) -> list[SampleSpec]:
    """Return a round's samples. Each pass over all requests has a new order, and seeds are new in every round."""
    round_samples = []
    for position in range(number * per_round, (number + 1) * per_round):
        epoch, place = divmod(position, len(requests))
        request = requests[int(np.random.default_rng([seed, epoch]).permutation(len(requests))[place])]
        for index in range(samples):
            draw = candidate_seed(seed, request.request_id, epoch * samples + index)
            round_samples.append(SampleSpec(request, index, draw))
    return round_samples


def local_samples(count: int, group: int, rank: int, processes: int) -> list[int]:
    """Return the indices, among `count` samples, of this process's samples: whole groups, assigned in turn."""
    return [i for i in range(count) if i // group % processes == rank]


def round_folder(train: Path, number: int) -> Path:
    return train / "rounds" / f"{number:04d}"


class RoundWriter:
    """Writes rounds as run folders. specs: scorer specs by score name; keep: number of rounds to keep, 0 = all."""

    def __init__(self, train: Path, generator: Generate, specs: Mapping[str, Mapping[str, Any]], keep: int) -> None:
        self.train, self.generator, self.specs, self.keep = train, generator, specs, keep

    def create(self, round_: Round, spec: Mapping[str, Any]) -> None:
        """Create the round's folder, after removing earlier attempts at this round and all later rounds."""
        self._remove(range(round_.number, 10**9))
        store = Store.create(round_folder(self.train, round_.number))
        store.write_requests({s.request.request_id: s.request for s in round_.samples}.values())
        write_json(store.candidates(GENERATOR).folder / "spec.json", spec)
        for name, scorer_spec in self.specs.items():
            write_json(store.scores(name).folder / "spec.json", scorer_spec)

    def write(self, round_: Round, scores: Scores) -> None:
        """Append this process's candidates and scores to the round's tables."""
        store = Store(round_folder(self.train, round_.number))
        requests = {s.request.request_id: s.request for s in round_.samples}
        rows = [candidate_row(candidate) for candidate in round_.candidates]
        for row, candidate in zip(rows, round_.candidates, strict=True):
            if candidate.extra == requests[candidate.request_id].extra:
                row["extra"] = "{}"
        store.candidates(GENERATOR).append(rows)
        for name, column in scores.items():
            rows = []
            for candidate, score in zip(round_.candidates, column, strict=True):
                aspects = json.dumps(dict(score.aspects)) if score.aspects else None
                row = {"id": candidate.id, "value": score.value, "aspects": aspects}
                rows.append(row | {"text": score.text, "error": score.error})
            store.scores(name).append(rows)

    def prune(self, number: int) -> None:
        """Remove rounds that are too old to keep, once round `number` is done."""
        if self.keep:
            self._remove(range(number - self.keep + 1))

    def _remove(self, numbers: range) -> None:
        for path in (self.train / "rounds").glob("*"):
            if path.name.isdigit() and int(path.name) in numbers:
                remove(path)
