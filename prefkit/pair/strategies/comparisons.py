"""Pairs that were compared: by judges or people (tables under comparisons/), the share of votes as soft label."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from prefkit.pair.pool import Pool
    from prefkit.store import Store


@dataclass(frozen=True)
class ComparisonsOptions:
    #: tables under comparisons/; empty = all
    tables: list[str] = field(default_factory=list)
    #: verdicts on this aspect; empty = those on the whole
    aspect: str = ""
    #: judges that must have compared a pair
    min_votes: int = 1
    #: strengths fitted per request to all of its verdicts, instead of each pair's own share of votes
    bradley_terry: bool = False
    #: precision of the normal prior on strengths
    prior: float = 1.0


class Comparisons:
    Options = ComparisonsOptions

    def __init__(self, options: ComparisonsOptions) -> None:
        from prefkit.errors import UsageError

        if options.prior <= 0:
            raise UsageError(f"pair: prior is {options.prior}; it must be above 0, for it keeps the unbeaten finite.")
        self.options, self.needs = options, 2

    def read(self, store: Store) -> pd.DataFrame:
        """Verdicts, a row per judge and pair."""
        from prefkit.pair.votes import verdicts

        return verdicts(store, self.options.tables, self.options.aspect)

    def compared(self, pool: Pool, votes: pd.DataFrame) -> pd.DataFrame:
        """win, lose, score_gap, rank_gap, p, agreement, conflict, by; ties have gap 0."""
        from prefkit.pair.votes import compared_pairs

        return compared_pairs(pool, votes, self.options.bradley_terry, self.options.prior, self.options.min_votes)

    def pairs(self, value: np.ndarray, scores: np.ndarray) -> list[tuple[int, int, float]]:
        from prefkit.errors import PluginError

        raise PluginError("strategy comparisons pairs what was compared, not scores: it needs a run folder.")


plugin = Comparisons
