"""Within each request, every candidate at or above a threshold against every candidate below it.

`preset: fashiondpo` is the rule of FashionDPO (arXiv 2504.12900, analyse.py): round the scores to integers, scale each
score to [0, 1] over all candidates, and average them per candidate. The threshold is the median of these means over
all candidates. Give FashionDPO's three experts equal weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from prefkit.errors import UsageError
from prefkit.pair.block import BlockStrategy, Chosen, ScoreTable, capped, every_pair


@dataclass(frozen=True)
class ThresholdOptions:
    #: fashiondpo = set rounding, normalisation and threshold as in FashionDPO
    preset: Literal["", "fashiondpo"] = ""
    #: the threshold is this quantile of the combined score over all candidates (0.5 = the median)
    quantile: float = 0.5
    #: fixed threshold on the combined score; null = use the quantile
    threshold: float | None = None
    #: maximum number of pairs per request
    max_pairs: int = 1000


class ThresholdAll(BlockStrategy):
    Options = ThresholdOptions

    def __init__(self, options: ThresholdOptions) -> None:
        super().__init__(options)
        if not 0 <= options.quantile <= 1:
            raise UsageError(f"pair: quantile is {options.quantile}; it must be from 0 to 1.")
        self.threshold = options.threshold
        fashion = {"normalise": "minmax", "scope": "global", "decimals": 0, "tie": 0.0}
        #: settings of the pair entry that the preset sets
        self.fixes: dict[str, Any] = fashion if options.preset == "fashiondpo" else {}
        if options.preset and (options.quantile != 0.5 or options.threshold is not None):
            raise UsageError("pair: preset fashiondpo uses the global median; remove quantile and threshold.")

    def fit(self, table: ScoreTable) -> None:
        if self.options.threshold is None:
            known = table.value[~np.isnan(table.value)]
            self.threshold = float(np.quantile(known, self.options.quantile)) if len(known) else np.inf

    def block(self, value: np.ndarray, scores: np.ndarray) -> Chosen:
        assert self.threshold is not None, "fit must be called first"
        win, lose, gap = every_pair(value)
        good = value >= self.threshold
        apart = np.take_along_axis(good, win, 1) & ~np.take_along_axis(good, lose, 1)
        return capped(apart, win, lose, gap, self.options.max_pairs)


plugin = ThresholdAll
