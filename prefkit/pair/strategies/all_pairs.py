"""Every pair of a request that is no tie, at most `max_pairs` of them: evenly from the widest gap to the narrowest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

    from prefkit.pair.block import Chosen


@dataclass(frozen=True)
class AllPairsOptions:
    #: pairs per request
    max_pairs: int = 12
    #: what is kept of more: spread (evenly over the gaps) | widest
    keep: Literal["spread", "widest"] = "spread"


class AllPairs:
    Options = AllPairsOptions

    def __init__(self, options: AllPairsOptions) -> None:
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
        return capped(pick(gap > 0, win, lose, gap), self.options.max_pairs, self.options.keep == "spread")


plugin = AllPairs
