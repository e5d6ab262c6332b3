"""Groups that an objective learns from: pairs, single images or ranked lists. All are made from pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from prefkit.errors import UsageError
from prefkit.train.data.pairs import Group, PairImage, PairRow
from prefkit.types import digest

CLOSE = 1e-6  # tolerance between sums of score gaps that should be equal


def groups_of(objective: Any, pairs: Sequence[PairRow], name: str, flip: int | None = None) -> list[Any]:
    """Convert pairs to groups of the objective's shape. A group of one winner keeps the pair's id and random draws.

    flip: if set, a seed; each pair or list is then reversed with probability 1/2.
    """
    scored = getattr(objective, "needs_advantage", False)
    groups: Sequence[Any] = ranked(pairs, name, scored) if objective.shape == "list" or scored else pairs
    if flip is not None:
        groups = [g.flipped() if int(digest("flipped", flip, g.id), 16) % 2 else g for g in groups]
    if objective.shape in ("list", "pair"):
        return list(groups)
    if scored:
        return [alone for group in groups for alone in split(group)]
    if not getattr(objective, "losers", False):
        return [_group(pair, pair.id, (pair.win,), (1.0,)) for pair in groups]
    return singles(groups)


def singles(pairs: Sequence[PairRow]) -> list[Group]:
    """Return a group for each prompt and image, labelled desirable if the image won at least one pair."""
    winners = {(pair.prompt, pair.win.key) for pair in pairs}
    groups: dict[tuple[str, str], Group] = {}
    for pair in pairs:
        for image in pair.images:
            key = (pair.prompt, image.key)
            groups.setdefault(key, _group(pair, digest(*key), (image,), (float(key in winners),)))
    return list(groups.values())


def ranked(pairs: Sequence[PairRow], name: str, scored: bool = False) -> list[Group]:
    """Return ranked lists of images: one for each set of a request's images that pairs connect, ranked by score gaps.

    Of several images with the same rank, only the first is used. scored: use all of them, and give each list the
    advantages of its images. Raises UsageError for missing or contradictory gaps.
    """
    requests: dict[tuple[str | None, str], list[PairRow]] = {}
    for pair in pairs:
        if pair.score_gap is None:
            raise UsageError(
                f"pairs {name}, row {pair.row}: no score_gap, by which a list objective ranks images. Use an "
                "objective for pairs, or pairs that `prefkit pair` made."
            )
        requests.setdefault((pair.request_id, pair.prompt), []).append(pair)
    groups: list[Group] = []
    for members in requests.values():
        unranked = {image.key: image for pair in members for image in pair.images}
        while unranked:
            values = _values(next(iter(unranked)), members, name)
            distinct = {value: key for key, value in reversed(values.items())}
            chosen = sorted(values if scored else distinct.values(), key=values.__getitem__, reverse=True)
            images = tuple(unranked[key] for key in chosen)
            unranked = {key: image for key, image in unranked.items() if key not in values}
            first = min((pair for pair in members if pair.win.key in values), key=lambda pair: pair.row)
            labels = (1.0, *[0.0] * (len(images) - 1))
            group = _group(first, digest(first.prompt, sorted(image.key for image in images)), images, labels)
            groups.append(with_advantages(group, [values[key] for key in chosen]) if scored else group)
    return groups


def with_advantages(group: Group, values: Sequence[float]) -> Group:
    """Return the group with advantages (value - mean) / std of its images' values, and 1 as the label of those above 0."""
    centred = np.asarray(values, np.float64) - np.mean(values)
    advantages = centred / max(float(centred.std()), CLOSE)
    return replace(group, advantages=tuple(advantages.tolist()), labels=tuple((advantages > 0) * 1.0))


def split(group: Group) -> list[Group]:
    """Return a group for each image, with its advantage."""
    assert group.advantages is not None
    members = zip(group.images, group.labels, group.advantages, strict=True)
    return [
        replace(group, id=digest(group.prompt, image.key), images=(image,), labels=(label,), advantages=(advantage,))
        for image, label, advantage in members
    ]


def _values(start: str, pairs: Sequence[PairRow], name: str) -> dict[str, float]:
    """Return {image key: value relative to `start`} of all images that pairs connect with `start`."""
    values = {start: 0.0}
    grown = True
    while grown:
        grown = False
        for pair in pairs:
            win, lose, gap = pair.win.key, pair.lose.key, float(pair.score_gap or 0.0)
            if win in values and lose in values:
                if not math.isclose(values[win] - values[lose], gap, rel_tol=CLOSE, abs_tol=CLOSE):
                    raise UsageError(
                        f"pairs {name}, row {pair.row}: score_gap {gap:g} contradicts the gap of "
                        f"{values[win] - values[lose]:g} that the request's other pairs imply, so the images cannot be "
                        "ranked. Use an objective for pairs."
                    )
            elif win in values or lose in values:
                key, value = (lose, values[win] - gap) if win in values else (win, values[lose] + gap)
                equal = [known for known in values.values() if math.isclose(known, value, abs_tol=CLOSE)]
                values[key] = equal[0] if equal else value
                grown = True
    return values


def _group(pair: PairRow, id: str, images: tuple[PairImage, ...], labels: tuple[float, ...]) -> Group:
    return Group(id, pair.row, pair.prompt, pair.request_id, images, labels, pair.score_gap, pair.p)
