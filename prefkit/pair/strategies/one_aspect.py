"""Pairs that differ in one aspect of a score alone, such as one clause of `geneval`, so that each says what was wrong.

The winner has the aspect, the loser lacks it, and all other aspects that both candidates have are equal. An aspect that
one of the two lacks, such as the colour of an object that was not found, is not compared. Pairs whose combined score
prefers the other candidate are left out. The column `aspect` of a pair names the aspect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prefkit.errors import PluginError, UsageError
from prefkit.pair.block import Aspects, BlockStrategy, Chosen
from prefkit.pair.pool import Pool, read_aspects
from prefkit.store import Store


@dataclass(frozen=True)
class OneAspectOptions:
    #: name of the score with the aspects; empty = the only score that the pairs are made by
    score: str = ""
    #: largest difference of an aspect that counts as equal; 0 suits verdicts of 0 or 1
    aspect_tie: float = 0.0
    #: maximum number of pairs per request and aspect
    max_pairs: int = 2


class OneAspect(BlockStrategy):
    Options = OneAspectOptions

    def __init__(self, options: OneAspectOptions) -> None:
        if options.aspect_tie < 0:
            raise UsageError(f"pair: aspect_tie is {options.aspect_tie}; it must be 0 or more.")
        super().__init__(options)

    def read_aspects(self, store: Store, pool: Pool, scores: Sequence[str]) -> Aspects:
        """Read the aspects of the candidates in the pool. scores: the scores that the pairs are made by."""
        name = self.options.score or (scores[0] if len(scores) == 1 else "")
        if name not in scores:
            problem = f"score is {name!r}" if name else "`score` is not set"
            raise UsageError(f"pair: {problem}; set it to the score whose aspects to compare: {', '.join(scores)}.")
        return read_aspects(store, pool, name)

    def block(self, value: np.ndarray, scores: np.ndarray, aspects: np.ndarray | None = None) -> Chosen:
        """Choose pairs of R requests. aspects [R, N, K]: higher is better, NaN = the candidate lacks the aspect.

        Within a request and an aspect, the widest gaps come first; among equal gaps, different candidates come first.
        """
        if aspects is None:
            raise PluginError("strategy one_aspect needs the aspects in a run's score table, not only scores.")
        count = value.shape[1]
        win, lose = (index.ravel() for index in np.indices((count, count)))
        gap = value[:, win] - value[:, lose]
        better, worse, differing = (np.zeros(gap.shape, np.int16) for _ in range(3))
        for k in range(aspects.shape[2]):  # one at a time, which saves memory
            difference = aspects[:, win, k] - aspects[:, lose, k]
            up = difference > self.options.aspect_tie
            better, worse = better + up, worse + (difference < -self.options.aspect_tie)
            differing[up] = k
        row, pair = np.nonzero((better == 1) & (worse == 0) & (gap >= 0))
        win, lose, gap, aspect = win[pair], lose[pair], gap[row, pair], differing[row, pair]
        group = row * aspects.shape[2] + aspect
        (winner, _), (loser, losers) = _numbered(group, win, count), _numbered(group, lose, count)
        order = np.lexsort((winner, (loser - winner) % losers, -gap, group))
        key = group[order]
        first = np.flatnonzero(np.r_[True, key[1:] != key[:-1]]) if len(key) else np.zeros(0, int)
        rank = np.arange(len(key)) - np.repeat(first, np.diff(np.r_[first, len(key)]))
        kept = order[rank < self.options.max_pairs]
        return Chosen(row[kept], win[kept], lose[kept], gap[kept], aspect=aspect[kept])


def _numbered(group: np.ndarray, index: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Number the different candidates of each group from 0. Returns (numbers [P], candidates in the pair's group [P])."""
    known, number = np.unique(group * count + index, return_inverse=True)
    first, end = np.searchsorted(known, group * count), np.searchsorted(known, (group + 1) * count)
    return number - first, end - first


plugin = OneAspect
