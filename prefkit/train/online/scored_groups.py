"""Groups of a round's samples with their advantages, for objectives that need no pairs."""

from __future__ import annotations

from typing import Any

import numpy as np

from prefkit.store import Store
from prefkit.train.data.groups import split
from prefkit.train.data.pairs import Group, PairImage
from prefkit.train.online.rounds import GENERATOR, Round
from prefkit.types import digest


def scored_groups(objective: Any, round_: Round, store: Store, samples: int, clip: float) -> list[Group]:
    """Return a group per request and visit (shape "list"), or per sample ("single"), the same in every process.

    store: the round's run folder; samples: number of samples per group; clip: largest absolute value of an advantage.
    Samples without a reward are left out, and so are groups whose advantages are all equal.
    """
    frame = store.candidates(GENERATOR).frame(["id", "seed", "error"])
    ids = dict(zip(frame.seed[frame.error.isna()].tolist(), frame.id[frame.error.isna()], strict=True))
    groups = []
    for start in range(0, len(round_.samples), samples):
        indices = range(start, min(start + samples, len(round_.samples)))
        known = [i for i in indices if np.isfinite(round_.advantages[i]) and round_.samples[i].seed in ids]
        values = {ids[round_.samples[i].seed]: float(np.clip(round_.advantages[i], -clip, clip)) for i in known}
        if objective.shape == "list" and len(set(values.values())) < 2:
            continue
        if values:
            groups.append(_group(round_, start, values))
    return groups if objective.shape == "list" else [alone for group in groups for alone in split(group)]


def _group(round_: Round, row: int, values: dict[str, float]) -> Group:
    """Return a group with the best image first. values: advantage by candidate id."""
    keys = sorted(values, key=lambda key: (-values[key], key))
    request = round_.samples[row].request
    images = tuple(PairImage(key, 0, key) for key in keys)
    advantages = tuple(values[key] for key in keys)
    labels = tuple(float(value > 0) for value in advantages)
    id = digest(request.prompt, sorted(keys))
    return Group(id, row, request.prompt, request.request_id, images, labels, advantages=advantages)
