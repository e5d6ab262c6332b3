"""Pairs whose winner is at least as good as the loser on all scores and better on one, widest combined gap first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prefkit.pair.block import BlockStrategy, Chosen, at, capped, every_pair


@dataclass(frozen=True)
class ParetoOptions:
    #: maximum number of pairs per request
    max_pairs: int = 4


class Pareto(BlockStrategy):
    Options = ParetoOptions

    def block(self, value: np.ndarray, scores: np.ndarray) -> Chosen:
        """Choose pairs whose winner dominates the loser. Differences up to a scorer's tie threshold count as equal;
        pairs with a missing score are left out."""
        win, lose, gap = every_pair(value)
        difference = at(scores, win) - at(scores, lose)
        dominates = (difference >= -self.ties).all(axis=2) & (difference > self.ties).any(axis=2)
        return capped(dominates & (gap > 0), win, lose, gap, self.options.max_pairs)


plugin = Pareto
