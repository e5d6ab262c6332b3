"""Pairs on which at least `m` scorers name the winner of the combined score, widest first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from prefkit.pair.block import Chosen, ScoreTable


@dataclass(frozen=True)
class ConsensusOptions:
    #: scorers that must agree
    m: int = 2
    #: pairs per request
    max_pairs: int = 4


class Consensus:
    Options = ConsensusOptions

    def __init__(self, options: ConsensusOptions) -> None:
        self.options = options
        self.needs = 2
        self.ties: np.ndarray | None = None

    def fit(self, table: ScoreTable) -> None:
        from prefkit.errors import UsageError

        if not 1 <= self.options.m <= len(table.ties):
            raise UsageError(
                f"pair: m is {self.options.m}, but {len(table.ties)} scores are weighted; m lies between 1 and that."
            )
        self.ties = table.ties

    def pairs(self, value: np.ndarray, scores: np.ndarray) -> list[tuple[int, int, float]]:
        """value [N], scores [N, S], NaN = missing -> (win, lose, gap > 0 of the combined score)."""
        from prefkit.pair.block import single

        return single(self, value, scores)

    def block(self, value: np.ndarray, scores: np.ndarray) -> Chosen:
        """value [R, N], scores [R, N, S] -> pairs. A difference within a scorer's tie, or a missing score, is no vote."""
        from prefkit.pair.block import at, capped, every_pair, pick

        win, lose, gap = every_pair(value)
        votes = (at(scores, win) - at(scores, lose) > (0.0 if self.ties is None else self.ties)).sum(axis=2)
        return capped(pick((votes >= self.options.m) & (gap > 0), win, lose, gap), self.options.max_pairs)


plugin = Consensus
