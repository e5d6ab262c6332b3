"""The K best against the K worst of a request, matched by rank: best with worst, second best with second worst.

K = 1 is best against worst. A request with fewer than 2 K scored candidates gives as many pairs as it can.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class TopkOptions:
    #: pairs per request
    k: int = 1


class TopkBottomk:
    Options = TopkOptions

    def __init__(self, options: TopkOptions) -> None:
        self.options = options
        self.needs = 2 * options.k  # candidates that a request must have; checked before pairing

    def pairs(self, value: np.ndarray, scores: np.ndarray) -> list[tuple[int, int, float]]:
        """value [N], NaN = missing -> (win, lose, gap >= 0); stable: equal values keep their order."""
        import numpy as np

        order = [int(i) for i in np.argsort(-value, kind="stable") if not np.isnan(value[i])]
        k = min(self.options.k, len(order) // 2)
        return [(w, loser, float(value[w] - value[loser])) for w, loser in zip(order[:k], order[::-1][:k])]


plugin = TopkBottomk
