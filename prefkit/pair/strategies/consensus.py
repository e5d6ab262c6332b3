"""Pairs whose winner by the combined score is also preferred by at least `m` scorers, widest gap first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prefkit.errors import UsageError
from prefkit.pair.block import BlockStrategy, Chosen, ScoreTable, at, capped, every_pair


@dataclass(frozen=True)
class ConsensusOptions:
    #: minimum number of scorers that must prefer the winner
    m: int = 2
    #: maximum number of pairs per request
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
        """Choose pairs that enough scorers agree on. A scorer has no vote if a score is missing or its gap is a tie."""
        win, lose, gap = every_pair(value)
        votes = (at(scores, win) - at(scores, lose) > self.ties).sum(axis=2)
        return capped((votes >= self.options.m) & (gap > 0), win, lose, gap, self.options.max_pairs)


plugin = Consensus
