"""What an objective is shown at a time: pairs, single images, or ranked lists, all made from the same pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from prefkit.errors import UsageError
from prefkit.train.data.pairs import PairImage, PairRow
from prefkit.types import digest

CLOSE = 1e-6  # of two sums of score gaps that should be one number


@dataclass(frozen=True)
class Group:
    """Images of one request that share a time and a noise, the best first. labels: 1 desirable, 0 not."""

    id: str
    row: int
    prompt: str
    request_id: str | None
    sides: tuple[PairImage, ...]
    labels: tuple[float, ...]
    score_gap: float | None = None
    p: float = 1.0

    def flipped(self) -> Group:
        return replace(self, sides=self.sides[::-1])


def groups_of(objective: Any, pairs: Sequence[PairRow], name: str, flip: int | None = None) -> list[Any]:
    """The pairs as this objective sees them. A winner alone keeps its pair's id, and so its draws.

    flip: null, or a seed by which pairs, or whole lists, are turned round with probability 1/2 each.
    """
    if objective.shape == "list":
        return [group if flip is None else _turned(group, flip) for group in ranked(pairs, name)]
    pairs = [pair if flip is None else _turned(pair, flip) for pair in pairs]
    if objective.shape == "pair":
        return pairs
    if not getattr(objective, "losers", False):
        return [_group(pair, pair.id, (pair.win,), (1.0,)) for pair in pairs]
    return singles(pairs)


def _turned(group: Any, seed: int) -> Any:
    return group.flipped() if int(digest("flipped", seed, group.id), 16) % 2 else group


def singles(pairs: Sequence[PairRow]) -> list[Group]:
    """Every image of a request once: desirable if it ever won."""
    won = {(pair.prompt, pair.win.key) for pair in pairs}
    found: dict[tuple[str, str], Group] = {}
    for pair in pairs:
        for side in (pair.win, pair.lose):
            place = (pair.prompt, side.key)
            found.setdefault(place, _group(pair, digest(*place), (side,), (float(place in won),)))
    return list(found.values())


def ranked(pairs: Sequence[PairRow], name: str) -> list[Group]:
    """One list per request and connected set of pairs, ordered by the values that the score gaps add up to.

    Of images with equal values the first is kept: a tie says nothing to a ranking.
    Raises UsageError where gaps are missing, or do not add up to one value per image.
    """
    requests: dict[tuple[str | None, str], list[PairRow]] = {}
    for pair in pairs:
        if pair.score_gap is None:
            raise UsageError(f"pairs {name}, row {pair.row}: no score_gap, by which images of a request are ranked. Use "
                             "an objective for pairs, or pairs that `prefkit pair` made.")  # fmt: skip
        requests.setdefault((pair.request_id, pair.prompt), []).append(pair)
    found: list[Group] = []
    for own in requests.values():
        waiting = {side.key: side for pair in own for side in (pair.win, pair.lose)}
        while waiting:
            values = _values(next(iter(waiting)), own, name)
            distinct = {value: key for key, value in reversed(values.items())}
            sides = tuple(waiting[key] for _, key in sorted(distinct.items(), reverse=True))
            waiting = {key: side for key, side in waiting.items() if key not in values}
            labels = (1.0, *[0.0] * (len(sides) - 1))
            row = min(pair.row for pair in own if pair.win.key in values)
            first = next(pair for pair in own if pair.row == row)
            found.append(_group(first, digest(first.prompt, sorted(side.key for side in sides)), sides, labels))
    return found


def _values(start: str, pairs: Sequence[PairRow], name: str) -> dict[str, float]:
    """Key -> value, relative to the start's, of all images that pairs connect with it; in the order of discovery."""
    values = {start: 0.0}
    grown = True
    while grown:
        grown = False
        for pair in pairs:
            win, lose, gap = pair.win.key, pair.lose.key, float(pair.score_gap or 0.0)
            if win in values and lose in values:
                if not math.isclose(values[win] - values[lose], gap, rel_tol=CLOSE, abs_tol=CLOSE):
                    raise UsageError(
                        f"pairs {name}, row {pair.row}: its score_gap {gap:g} does not agree with the gaps of the other "
                        f"pairs of this request ({values[win] - values[lose]:g}), so its images have no one ranking. "
                        "Use an objective for pairs."
                    )
            elif win in values or lose in values:
                new = {lose: values[win] - gap} if win in values else {win: values[lose] + gap}
                near = [value for value in values.values() if math.isclose(value, *new.values(), abs_tol=CLOSE)]
                values |= {key: near[0] for key in new} if near else new
                grown = True
    return values


def _group(pair: PairRow, id: str, sides: tuple[PairImage, ...], labels: tuple[float, ...]) -> Group:
    return Group(id, pair.row, pair.prompt, pair.request_id, sides, labels, pair.score_gap, pair.p)
