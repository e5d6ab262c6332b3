"""What a strategy has to give back: places that are there, a winner that is another one and not worse."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from prefkit.errors import PluginError
from prefkit.pair.block import Chosen
from prefkit.plugin_guard import described, guarded

Pairs = list[tuple[int, int, float]]
COLUMNS = ("win", "lose", "score_gap", "rank_gap", "p", "agreement", "conflict", "by")


def pairs_of(strategy: Any, value: np.ndarray, scores: np.ndarray, name: str) -> Pairs:
    """`strategy.pairs` of one request, checked: value [N], scores [N, S], which it may change. Raises PluginError for an invalid pair."""
    with guarded(f"strategy {name}", "failed"):
        given = strategy.pairs(value, scores)
        found = list(given) if isinstance(given, (list, tuple)) or type(given).__name__ == "generator" else None
    if found is None:
        raise PluginError(f"strategy {name} returned {described(given)}; a list of (winner, loser, gap) is needed.")
    return [_pair(pair, len(value), name) for pair in found]


def _pair(pair: Any, count: int, name: str) -> tuple[int, int, float]:
    try:
        win, lose, gap = pair
        win, lose, gap = operator.index(win), operator.index(lose), float(gap)
    except (TypeError, ValueError, OverflowError) as error:
        raise PluginError(
            f"strategy {name} returned {str(pair)[:80]}; (winner, loser, gap) is needed: two whole numbers and a number."
        ) from error
    _refuse(name, win, lose, gap, count)
    return win, lose, gap


def _refuse(name: str, win: int, lose: int, gap: float, count: int) -> None:
    said = f"strategy {name} returned the pair ({win}, {lose}) with gap {gap}"
    if not (0 <= win < count and 0 <= lose < count):
        raise PluginError(f"{said}, but there are {count} candidates: places go from 0 to {count - 1}.")
    if win == lose or not gap >= 0 or gap == float("inf"):
        raise PluginError(f"{said}; a winner must differ and not be worse, by a finite gap.")


def of_requests(requests: Sequence[Pairs]) -> Chosen:
    """The pairs of each request of a block, as `block` gives them."""
    rows = [(number, *pair) for number, pairs in enumerate(requests) for pair in pairs]
    table = np.array(rows, np.float64).reshape(-1, 4)
    row, win, lose = table[:, :3].astype(np.int64).T
    return Chosen(row, win, lose, table[:, 3])


def checked_block(found: Any, shape: tuple[int, ...], scorers: int, name: str) -> None:
    """found of a block [R, N] of requests. Raises PluginError for anything but a Chosen whose places are there."""
    columns: list[Any] = [getattr(found, column, None) for column in ("row", "win", "lose", "gap")]
    shapes = {getattr(column, "shape", None) for column in columns}
    whole = all(getattr(getattr(column, "dtype", None), "kind", "") in "iu" for column in columns[:3])
    if len(shapes) != 1 or len(shapes.pop() or (0, 0)) != 1 or not whole:
        raise PluginError(f"strategy {name}: block() must return a Chosen: arrays of one length, places as integers.")
    row, win, lose, gap = columns
    places = [(row, shape[0]), (win, shape[1]), (lose, shape[1])]
    by = getattr(found, "by", None)
    if by is not None:
        places.append((np.asarray(by) + 1, scorers + 1))
    outside = [(np.asarray(place) < 0) | (np.asarray(place) >= most) for place, most in places]
    wrong = np.any(outside, axis=0) | (win == lose) | ~(gap >= 0) | ~np.isfinite(gap)
    for i in np.flatnonzero(wrong)[:1]:
        _refuse(name, int(win[i]), int(lose[i]), float(gap[i]), shape[1])
        raise PluginError(
            f"strategy {name}: block() names request {row[i]} of {shape[0]}, or a scorer that is not there."
        )


def checked_table(found: Any, requests: np.ndarray, name: str) -> None:
    """found: what a strategy made of votes, a row a pair; requests [N]: of the candidates. Raises PluginError."""
    lacking = [column for column in COLUMNS if column not in getattr(found, "columns", ())]
    if lacking:
        raise PluginError(f"strategy {name}: compared() must return a DataFrame with {', '.join(COLUMNS)}.")
    win, lose, gap = (found[column].to_numpy() for column in ("win", "lose", "score_gap"))
    if win.dtype.kind not in "iu" or lose.dtype.kind not in "iu" or gap.dtype.kind not in "iuf":
        raise PluginError(f"strategy {name}: compared() must give places as integers, and gaps as numbers.")
    for pair in zip(win.tolist(), lose.tolist(), gap.tolist()):
        _refuse(name, *pair, len(requests))
    if (requests[win] != requests[lose]).any():
        raise PluginError(f"strategy {name}: compared() pairs candidates of two requests, which do not compare.")
