"""All pairs of a request with a gap above 0; if there are more than `max_pairs`, some of them (see `keep`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from prefkit.pair.block import BlockStrategy, Chosen, capped, every_pair


@dataclass(frozen=True)
class AllPairsOptions:
    #: maximum number of pairs per request
    max_pairs: int = 12
    #: which pairs to keep if there are more than max_pairs: spread (evenly from widest to narrowest gap) | widest
    keep: Literal["spread", "widest"] = "spread"


class AllPairs(BlockStrategy):
    Options = AllPairsOptions

    def block(self, value: np.ndarray, scores: np.ndarray) -> Chosen:
        win, lose, gap = every_pair(value)
        return capped(gap > 0, win, lose, gap, self.options.max_pairs, self.options.keep == "spread")


plugin = AllPairs
