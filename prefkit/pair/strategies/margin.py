"""The pairs of a request whose gap is at least `min_gap`, widest gap first, at most `max_pairs`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prefkit.pair.block import BlockStrategy, Chosen, capped, every_pair


@dataclass(frozen=True)
class MarginOptions:
    #: smallest gap between combined scores (weighted means of normalised scores)
    min_gap: float = 1.0
    #: maximum number of pairs per request
    max_pairs: int = 4


class Margin(BlockStrategy):
    Options = MarginOptions

    def block(self, value: np.ndarray, scores: np.ndarray) -> Chosen:
        win, lose, gap = every_pair(value)
        return capped((gap >= self.options.min_gap) & (gap > 0), win, lose, gap, self.options.max_pairs)


plugin = Margin
