"""Pairs on which at least `m` scorers agree with the combined score, widest first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prefkit.errors import UsageError
from prefkit.pair.block import BlockStrategy, Chosen, ScoreTable, at, capped, every_pair


@dataclass(frozen=True)
class ConsensusOptions:
    #: scorers that must agree
    m: int = 2
    #: pairs per request
    max_pairs: int = 4


class Consensus(BlockStrategy):
    Options = ConsensusOptions

    def fit(self, table: ScoreTable) -> None:
        count = len(table.ties)
        if not 1 <= self.options.m <= count:
            raise UsageError(
                f"pair: m is {self.options.m}; it must be from 1 to {count}, the number of weighted scores."
            )
        super().fit(table)

    def block(self, value: np.ndarray, scores: np.ndarray) -> Chosen:
        """Choose pairs by votes: a difference within a scorer's tie threshold, or a missing score, is not a vote."""
        win, lose, gap = every_pair(value)
        votes = (at(scores, win) - at(scores, lose) > self.ties).sum(axis=2)
        return capped((votes >= self.options.m) & (gap > 0), win, lose, gap, self.options.max_pairs)


plugin = Consensus
