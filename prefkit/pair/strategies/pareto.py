"""The winner is at least as good on every score and better on one; such pairs, widest combined gap first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from prefkit.pair.block import Chosen, ScoreTable


@dataclass(frozen=True)
class ParetoOptions:
    #: pairs per request
    max_pairs: int = 4


class Pareto:
    Options = ParetoOptions

    def __init__(self, options: ParetoOptions) -> None:
        self.options = options
        self.needs = 2
        self.ties: np.ndarray | None = None

    def fit(self, table: ScoreTable) -> None:
        self.ties = table.ties

    def pairs(self, value: np.ndarray, scores: np.ndarray) -> list[tuple[int, int, float]]:
        """value [N], scores [N, S], NaN = missing -> (win, lose, gap > 0 of the combined score)."""
        from prefkit.pair.block import single

        return single(self, value, scores)

    def block(self, value: np.ndarray, scores: np.ndarray) -> Chosen:
        """value [R, N], scores [R, N, S] -> pairs. A difference within a scorer's tie is none; a missing score is no
        proof of being as good, so that such pairs are left out."""
        from prefkit.pair.block import at, capped, every_pair, pick

        win, lose, gap = every_pair(value)
        difference = at(scores, win) - at(scores, lose)
        ties = 0.0 if self.ties is None else self.ties
        dominates = (difference >= -ties).all(axis=2) & (difference > ties).any(axis=2)
        return capped(pick(dominates & (gap > 0), win, lose, gap), self.options.max_pairs)


plugin = Pareto
