"""Every pair of a request whose gap is at least `min_gap`, widest first, at most `max_pairs` of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from prefkit.pair.block import Chosen


@dataclass(frozen=True)
class MarginOptions:
    #: smallest gap, in units of the combined score (the weighted mean of the normalised scores)
    min_gap: float = 1.0
    #: pairs per request
    max_pairs: int = 4


class Margin:
    Options = MarginOptions

    def __init__(self, options: MarginOptions) -> None:
        self.options = options
        self.needs = 2

    def pairs(self, value: np.ndarray, scores: np.ndarray) -> list[tuple[int, int, float]]:
        """value [N], NaN = missing -> (win, lose, gap > 0)."""
        from prefkit.pair.block import single

        return single(self, value, scores)

    def block(self, value: np.ndarray, scores: np.ndarray) -> Chosen:
        """value [R, N] -> pairs, request by request."""
        from prefkit.pair.block import capped, every_pair, pick

        win, lose, gap = every_pair(value)
        return capped(pick((gap >= self.options.min_gap) & (gap > 0), win, lose, gap), self.options.max_pairs)


plugin = Margin
