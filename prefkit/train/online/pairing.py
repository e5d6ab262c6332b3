"""Which samples of a round are preferred to which: an entry of the recipe's `pair`, or best against worst."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from prefkit import registry
from prefkit.config import Online, Pair, Recipe
from prefkit.errors import UsageError
from prefkit.train.online.rounds import Round


def pair_settings(recipe: Recipe, online: Online, where: str) -> Pair:
    """As `prefkit pair` takes them, with the rewards' weights where the entry has none. Raises UsageError."""
    from dataclasses import replace

    if online.pair is not None and online.pair not in recipe.pair:
        raise UsageError(
            f"{where}.pair: {online.pair!r} is not in the recipe; `pair:` has {', '.join(recipe.pair) or 'none'}."
        )
    chosen = recipe.pair[online.pair] if online.pair is not None else Pair(options={"k": 1})
    return replace(chosen, weights=dict(chosen.weights) or dict(online.rewards), generators=[])


@dataclass
class Chooser:
    """strategy on the rewards; pairs whose gap is not above `tie` are left out."""

    strategy: Any
    tie: float

    @classmethod
    def of(cls, settings: Pair, where: str) -> Chooser:
        return cls(registry.make("strategy", settings.use, settings.options, where), settings.tie or 0.0)


def chosen_pairs(chooser: Chooser, round_: Round) -> list[tuple[int, int, float]]:
    """(winner, loser, gap) by number of sample, within groups. Samples without a reward take no part."""
    if hasattr(chooser.strategy, "fit"):
        chooser.strategy.fit(round_.rewards)
    groups, found = round_.groups, []
    for group in range(int(groups.max()) + 1):
        members = np.flatnonzero((groups == group) & np.isfinite(round_.rewards))
        if len(members) < 2:
            continue
        values = round_.rewards[members]
        for win, lose, gap in chooser.strategy.pairs(values, values[:, None]):
            if gap > chooser.tie:
                found.append((int(members[win]), int(members[lose]), gap))
    return found
