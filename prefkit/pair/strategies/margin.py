"""Every pair of a request whose gap is at least `min_gap`, widest first, at most `max_pairs` of them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


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
        import numpy as np

        present = [int(i) for i in np.argsort(-value, kind="stable") if not np.isnan(value[i])]
        found = [(w, loser, float(value[w] - value[loser])) for w, loser in combinations(present, 2)]
        wide = [pair for pair in found if pair[2] >= self.options.min_gap and pair[2] > 0]
        return sorted(wide, key=lambda pair: -pair[2])[: self.options.max_pairs]


plugin = Margin
