"""Check the pairs that a strategy returns: indices in range, winner and loser distinct, gap finite and not negative."""

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
    """Call `strategy.pairs`, which may change value [N] and scores [N, S]. Raises PluginError for an invalid result."""
    with guarded(f"strategy {name}", "failed"):
        result = strategy.pairs(value, scores)
        pairs = list(result) if isinstance(result, (list, tuple)) or type(result).__name__ == "generator" else None
    if pairs is None:
        raise PluginError(
            f"strategy {name} returned {described(result)}; it must return a list of (winner, loser, gap)."
        )
    return [_pair(pair, len(value), name) for pair in pairs]


def _pair(pair: Any, count: int, name: str) -> tuple[int, int, float]:
    try:
        win, lose, gap = pair
        win, lose, gap = operator.index(win), operator.index(lose), float(gap)
    except (TypeError, ValueError, OverflowError) as error:
        raise PluginError(
            f"strategy {name} returned {str(pair)[:80]}; a pair is (winner, loser, gap): two integers and a number."
        ) from error
    _check_pair(name, win, lose, gap, count)
    return win, lose, gap


def _check_pair(name: str, win: int, lose: int, gap: float, count: int) -> None:
    prefix = f"strategy {name} returned the pair ({win}, {lose}) with gap {gap}"
    if not (0 <= win < count and 0 <= lose < count):
        raise PluginError(f"{prefix}, but the request has {count} candidates: indices go from 0 to {count - 1}.")
    if win == lose or not gap >= 0 or gap == float("inf"):
        raise PluginError(
            f"{prefix}; the winner must differ from the loser, and the gap must be finite and not negative."
        )


def of_requests(requests: Sequence[Pairs]) -> Chosen:
    """Convert the pairs of each request in a block to a `Chosen`."""
    rows = [(number, *pair) for number, pairs in enumerate(requests) for pair in pairs]
    table = np.array(rows, np.float64).reshape(-1, 4)
    row, win, lose = table[:, :3].astype(np.int64).T
    return Chosen(row, win, lose, table[:, 3])


def check_block(chosen: Any, shape: tuple[int, ...], scorers: int, name: str, aspects: int | None = None) -> None:
    """Raise PluginError unless `chosen` is a valid Chosen. shape: (requests, candidates per request) of the block.

    aspects: the number of aspects, for a strategy that chooses by aspects.
    """
    columns: list[Any] = [getattr(chosen, column, None) for column in ("row", "win", "lose", "gap")]
    shapes = {getattr(column, "shape", None) for column in columns}
    integer = all(getattr(getattr(column, "dtype", None), "kind", "") in "iu" for column in columns[:3])
    if len(shapes) != 1 or len(shapes.pop() or (0, 0)) != 1 or not integer:
        raise PluginError(
            f"strategy {name}: block() must return a Chosen with the arrays row, win, lose (integers) and gap, all of "
            "the same length."
        )
    row, win, lose, gap = columns
    bounds = [(row, shape[0]), (win, shape[1]), (lose, shape[1])]
    by = getattr(chosen, "by", None)
    if by is not None:
        bounds.append((np.asarray(by) + 1, scorers + 1))
    if aspects is not None:
        aspect = getattr(chosen, "aspect", None)
        if not isinstance(aspect, np.ndarray) or aspect.shape != row.shape or aspect.dtype.kind not in "iu":
            raise PluginError(
                f"strategy {name}: block() must return a Chosen with the array aspect (integers), one per pair."
            )
        bounds.append((aspect, aspects))
    outside = [(np.asarray(index) < 0) | (np.asarray(index) >= most) for index, most in bounds]
    wrong = np.any(outside, axis=0) | (win == lose) | ~(gap >= 0) | ~np.isfinite(gap)
    for i in np.flatnonzero(wrong)[:1]:
        _check_pair(name, int(win[i]), int(lose[i]), float(gap[i]), shape[1])
        raise PluginError(
            f"strategy {name}: block() returned an invalid index: row {row[i]} (the block has {shape[0]} rows, "
            "counted from 0), or an aspect or a scorer that does not exist."
        )


def check_table(pairs: Any, requests: np.ndarray, name: str) -> None:
    """Raise PluginError unless `pairs` is a valid result of `compared`. requests [N]: each candidate's request."""
    if any(column not in getattr(pairs, "columns", ()) for column in COLUMNS):
        raise PluginError(f"strategy {name}: compared() must return a DataFrame with the columns {', '.join(COLUMNS)}.")
    win, lose, gap = (pairs[column].to_numpy() for column in ("win", "lose", "score_gap"))
    if win.dtype.kind not in "iu" or lose.dtype.kind not in "iu" or gap.dtype.kind not in "iuf":
        raise PluginError(
            f"strategy {name}: compared() must return integers in win and lose, and numbers in score_gap."
        )
    for pair in zip(win.tolist(), lose.tolist(), gap.tolist()):
        _check_pair(name, *pair, len(requests))
    if (requests[win] != requests[lose]).any():
        raise PluginError(
            f"strategy {name}: compared() paired candidates from different requests. Pair candidates of one request."
        )
