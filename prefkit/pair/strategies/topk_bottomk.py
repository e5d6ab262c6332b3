"""The K best against the K worst of a request, matched by rank: best with worst, second best with second worst.

K = 1 is best against worst. A request with fewer than 2 K scored candidates gives as many pairs as it can.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from prefkit.pair.block import Chosen


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
        from prefkit.pair.block import single

        return single(self, value, scores)

    def block(self, value: np.ndarray, scores: np.ndarray) -> Chosen:
        """value [R, N] -> pairs, request by request."""
        import numpy as np

        from prefkit.pair.block import Chosen

        k = min(self.options.k, value.shape[1] // 2)
        order = np.argsort(-value, axis=1, kind="stable")
        win, lose = order[:, :k], order[:, ::-1][:, :k]
        gap = np.take_along_axis(value, win, 1) - np.take_along_axis(value, lose, 1)
        return Chosen(np.repeat(np.arange(len(value)), k), win.ravel(), lose.ravel(), gap.ravel())


plugin = TopkBottomk
