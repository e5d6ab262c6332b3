"""Pairs that models or people compared (tables under comparisons/); the fraction of votes is the soft label."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from prefkit.errors import PluginError, UsageError
from prefkit.pair.pool import Pool
from prefkit.pair.votes import compared_pairs, verdicts
from prefkit.store import Store


@dataclass(frozen=True)
class ComparisonsOptions:
    #: names of the tables under comparisons/ to use; empty = all
    tables: list[str] = field(default_factory=list)
    #: use only verdicts on this aspect; empty = overall verdicts
    aspect: str = ""
    #: minimum number of judges that must have compared a pair
    min_votes: int = 1
    #: fit Bradley-Terry strengths to all verdicts of a request, instead of using each pair's fraction of votes
    bradley_terry: bool = False
    #: precision of the normal prior on the Bradley-Terry strengths
    prior: float = 1.0


class Comparisons:
    Options = ComparisonsOptions
    needs = 2

    def __init__(self, options: ComparisonsOptions) -> None:
        if options.prior <= 0:
            raise UsageError(f"pair: prior is {options.prior}; it must be above 0, to keep all strengths finite.")
        self.options = options

    def read(self, store: Store) -> pd.DataFrame:
        """Read the verdicts, one row per judge and pair."""
        return verdicts(store, self.options.tables, self.options.aspect)

    def compared(self, pool: Pool, votes: pd.DataFrame) -> pd.DataFrame:
        """Return the compared pairs with the columns contract.COLUMNS; tied pairs have gap 0."""
        return compared_pairs(pool, votes, self.options.bradley_terry, self.options.prior, self.options.min_votes)

    def pairs(self, value: np.ndarray, scores: np.ndarray) -> list[tuple[int, int, float]]:
        raise PluginError("strategy comparisons makes pairs from the verdicts in a run folder and cannot use scores.")


plugin = Comparisons
