"""Requests with equally many candidates side by side, so that strategies work on whole arrays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

CELLS = 1 << 22  # candidate pairs handled at a time: a few hundred MB at most


@dataclass(frozen=True)
class ScoreTable:
    """All candidates of a run, for strategies that need more than a request (`fit`).

    value [T], scores [T, S] (higher is wanted, NaN = missing), ties [S]: differences up to it are none, aliases [S].
    """

    value: np.ndarray
    scores: np.ndarray
    ties: np.ndarray
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chosen:
    """Pairs of a block: row of the request, winner's and loser's place in it, gap; by: the scorer that decided, or -1."""

    row: np.ndarray
    win: np.ndarray
    lose: np.ndarray
    gap: np.ndarray
    by: np.ndarray | None = None


def blocks(groups: np.ndarray) -> Iterator[np.ndarray]:
    """groups [T], equal ones side by side -> [R, N] indices of R requests of N candidates, all requests in the end."""
    if not len(groups):
        return
    starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])
    sizes = np.diff(np.r_[starts, len(groups)])
    for size in np.unique(sizes):
        mine = starts[sizes == size]
        step = max(1, CELLS // int(size) ** 2)
        for i in range(0, len(mine), step):
            yield mine[i : i + step, None] + np.arange(size)


def single(strategy: object, value: np.ndarray, scores: np.ndarray) -> list[tuple[int, int, float]]:
    """`strategy.block` on one request: value [N], scores [N, S], candidates of value NaN are passed over."""
    there = np.flatnonzero(~np.isnan(value))
    if len(there) < 2:
        return []
    found = strategy.block(value[None, there], scores[None, there])  # type: ignore[attr-defined]
    return [(int(there[w]), int(there[x]), float(g)) for w, x, g in zip(found.win, found.lose, found.gap)]


def capped(pairs: tuple[np.ndarray, ...], most: int, spread: bool = False) -> Chosen:
    """At most `most` pairs per request, widest first: the widest, or (spread) evenly from the widest to the narrowest."""
    row, win, lose, gap = pairs
    order = np.lexsort((lose, win, -gap, row))
    row, win, lose, gap = row[order], win[order], lose[order], gap[order]
    first = np.flatnonzero(np.r_[True, row[1:] != row[:-1]]) if len(row) else np.zeros(0, int)
    count = np.diff(np.r_[first, len(row)])
    place = np.arange(len(row)) - np.repeat(first, count)
    total = np.repeat(count, count)
    if spread and most > 1:
        # place i is kept where the line from 0 to total-1, cut into most-1 steps, lands on it
        step = np.maximum(total - 1, 1)
        slot = -(-place * (most - 1) // step)
        keep = (total <= most) | (slot * step // (most - 1) == place)
    else:
        keep = place < most
    return Chosen(row[keep], win[keep], lose[keep], gap[keep])


def every_pair(value: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """value [R, N] -> winner and loser [R, P] of all N (N - 1) / 2 pairs, and gap >= 0."""
    i, j = np.triu_indices(value.shape[1], 1)
    difference = value[:, i] - value[:, j]
    up = difference >= 0
    return np.where(up, i, j), np.where(up, j, i), np.abs(difference)


def at(scores: np.ndarray, place: np.ndarray) -> np.ndarray:
    """scores [R, N, S], place [R, P] -> [R, P, S]"""
    return np.take_along_axis(scores, place[:, :, None], axis=1)


def pick(mask: np.ndarray, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """mask [R, P] -> row numbers, then the entries of each [R, P] array."""
    rows, columns = np.nonzero(mask)
    return (rows, *(a[rows, columns] for a in arrays))
