"""Good against bad by one threshold, every combination: a request whose candidates lie on one side gives no pair.

`preset: fashiondpo` is the rule of FashionDPO (arXiv 2504.12900, analyse.py): scores rounded to integers, each scaled to
[0, 1] over all candidates, their mean, the median over all candidates as threshold; at or above it is good. Give the
three experts equal weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

    from prefkit.pair.block import Chosen, ScoreTable


@dataclass(frozen=True)
class ThresholdOptions:
    #: fashiondpo fixes rounding, normalisation and threshold
    preset: Literal["", "fashiondpo"] = ""
    #: the threshold is this quantile of the combined score over all candidates (0.5 = the global median)
    quantile: float = 0.5
    #: a fixed threshold on the combined score instead; null = the quantile
    threshold: float | None = None
    #: pairs per request
    max_pairs: int = 1000


class ThresholdAll:
    Options = ThresholdOptions

    def __init__(self, options: ThresholdOptions) -> None:
        from prefkit.errors import UsageError

        if not 0 <= options.quantile <= 1:
            raise UsageError(f"pair: quantile is {options.quantile}; it lies between 0 and 1.")
        self.options, self.needs = options, 2
        self.threshold = options.threshold
        fashion = {"normalise": "minmax", "scope": "global", "decimals": 0, "tie": 0.0}
        #: settings of `pair` that the preset prescribes
        self.fixes: dict[str, Any] = fashion if options.preset == "fashiondpo" else {}
        if options.preset and (options.quantile != 0.5 or options.threshold is not None):
            raise UsageError(
                "pair: preset fashiondpo thresholds at the global median; leave out quantile and threshold."
            )

    def fit(self, table: ScoreTable) -> None:
        import numpy as np

        if self.options.threshold is None:
            known = table.value[~np.isnan(table.value)]
            self.threshold = float(np.quantile(known, self.options.quantile)) if len(known) else np.inf

    def pairs(self, value: np.ndarray, scores: np.ndarray) -> list[tuple[int, int, float]]:
        """value [N], NaN = missing -> (win at or above the threshold, lose below it, gap > 0)."""
        from prefkit.pair.block import single

        return single(self, value, scores)

    def block(self, value: np.ndarray, scores: np.ndarray) -> Chosen:
        """value [R, N] -> pairs, request by request."""
        import numpy as np

        from prefkit.pair.block import capped, every_pair, pick

        assert self.threshold is not None, "fit comes first"
        win, lose, gap = every_pair(value)
        good = value >= self.threshold
        apart = np.take_along_axis(good, win, 1) & ~np.take_along_axis(good, lose, 1)
        return capped(pick(apart, win, lose, gap), self.options.max_pairs)


plugin = ThresholdAll
