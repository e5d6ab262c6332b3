"""Blocks: groups of requests with the same number of candidates, so that strategies can work on whole arrays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

CELLS = 1 << 22  # candidate pairs per block, which limits memory to a few hundred MB


@dataclass(frozen=True)
class ScoreTable:
    """The scores of all T candidates, for a strategy's `fit`.

    value [T]: combined score; scores [T, S]: normalised, higher is better, NaN = missing; ties [S]: each scorer's
    largest difference that counts as a tie; aliases: names of the S scores.
    """

    value: np.ndarray
    scores: np.ndarray
    ties: np.ndarray
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chosen:
    """Pairs chosen from a block. row: index of the request; win, lose: indices of candidates in the request.

    by: index of the scorer that chose the pair, -1 for the combined score. aspect: index (0 to K - 1) of the request's
    aspect in which the pair differs, for strategies with `read_aspects`.
    """

    row: np.ndarray
    win: np.ndarray
    lose: np.ndarray
    gap: np.ndarray
    by: np.ndarray | None = None
    aspect: np.ndarray | None = None


@dataclass(frozen=True)
class Aspects:
    """The aspects of T candidates in one score, for strategies with `read_aspects`.

    values [T, K]: higher is better, NaN = missing; K is the largest number of aspects of a request. code [T, K]: index
    of each column's name, the same for all candidates of a request; -1 if the request has fewer aspects.
    """

    values: np.ndarray
    code: np.ndarray
    names: tuple[str, ...]


class BlockStrategy:
    """Base class of the built-in strategies that use scores. A subclass implements `block`.

    needs: minimum number of candidates per request. ties [S]: each scorer's largest difference that counts as a tie.
    """

    needs = 2
    ties: np.ndarray | float = 0.0

    def __init__(self, options: Any) -> None:
        self.options = options

    def fit(self, table: ScoreTable) -> None:
        self.ties = table.ties

    def block(self, value: np.ndarray, scores: np.ndarray) -> Chosen:
        """Choose pairs from R requests of N candidates: value [R, N], scores [R, N, S]."""
        raise NotImplementedError  # each strategy defines it

    def pairs(self, value: np.ndarray, scores: np.ndarray) -> list[tuple[int, int, float]]:
        """Return [(winner, loser, gap >= 0)] for one request. value [N]: NaN skips the candidate; scores [N, S]."""
        present = np.flatnonzero(~np.isnan(value))
        if len(present) < 2:
            return []
        chosen = self.block(value[None, present], scores[None, present])
        return [(int(present[w]), int(present[x]), float(g)) for w, x, g in zip(chosen.win, chosen.lose, chosen.gap)]


def blocks(groups: np.ndarray) -> Iterator[np.ndarray]:
    """Yield blocks: candidate indices [R, N], one row per request. groups [T], sorted: each candidate's request."""
    if not len(groups):
        return
    starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])
    sizes = np.diff(np.r_[starts, len(groups)])
    for size in np.unique(sizes):
        first = starts[sizes == size]
        step = max(1, CELLS // int(size) ** 2)
        for i in range(0, len(first), step):
            yield first[i : i + step, None] + np.arange(size)


def distinct(indices: np.ndarray) -> np.ndarray:
    """Return the distinct values of indices [N] >= 0, ascending: np.unique for small integers, several times as fast."""
    return np.flatnonzero(np.bincount(indices))


def every_pair(value: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (winner, loser, gap >= 0), each [R, P], for all P = N (N - 1) / 2 pairs of each request. value: [R, N]."""
    i, j = np.triu_indices(value.shape[1], 1)
    difference = value[:, i] - value[:, j]
    up = difference >= 0
    return np.where(up, i, j), np.where(up, j, i), np.abs(difference)


def at(scores: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return the scores [R, P, S] of the candidates with the indices [R, P] in their request. scores: [R, N, S]."""
    return np.take_along_axis(scores, index[:, :, None], axis=1)


def capped(
    mask: np.ndarray, win: np.ndarray, lose: np.ndarray, gap: np.ndarray, most: int, spread: bool = False
) -> Chosen:
    """Choose at most `most` pairs per request from those with a True mask, and sort them by descending gap.

    mask, win, lose, gap: [R, P]. Chooses the pairs with the widest gaps or, with `spread`, pairs at evenly spaced ranks
    from the widest gap to the narrowest.
    """
    row, win, lose, gap = np.nonzero(mask)[0], win[mask], lose[mask], gap[mask]
    order = np.lexsort((lose, win, -gap, row))
    row, win, lose, gap = row[order], win[order], lose[order], gap[order]
    first = np.flatnonzero(np.r_[True, row[1:] != row[:-1]]) if len(row) else np.zeros(0, int)
    count = np.diff(np.r_[first, len(row)])
    rank = np.arange(len(row)) - np.repeat(first, count)
    total = np.repeat(count, count)
    if spread and most > 1:
        # the kept ranks divide 0..total-1 into most-1 equal steps
        step = np.maximum(total - 1, 1)
        slot = -(-rank * (most - 1) // step)
        keep = (total <= most) | (slot * step // (most - 1) == rank)
    else:
        keep = rank < most
    return Chosen(row[keep], win[keep], lose[keep], gap[keep])
