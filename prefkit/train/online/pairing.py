"""Which samples of a round are preferred to which: an entry of the recipe's `pair`, or best against worst."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from prefkit.config import Online, Pair, Recipe, plugin_options
from prefkit.errors import UsageError
from prefkit.pair.choose import choose_by, lacking, top_pairs
from prefkit.pair.run import settled
from prefkit.train.online.rounds import Round

REWARD = "reward"


def pair_settings(recipe: Recipe, online: Online, where: str) -> Pair:
    """As `prefkit pair` takes them, with the rewards' weights where the entry has none. Raises UsageError."""
    if online.pair is not None and online.pair not in recipe.pair:
        raise UsageError(
            f"{where}.pair: {online.pair!r} is not in the recipe; `pair:` has {', '.join(recipe.pair) or 'none'}."
        )
    chosen = recipe.pair[online.pair] if online.pair is not None else Pair(options={"k": 1})
    weights = {alias: weight for alias, weight in (chosen.weights or online.rewards).items() if weight}
    return replace(chosen, weights=weights, generators=[])


@dataclass
class Chooser:
    """A round's samples -> pairs, by the code of `prefkit pair` on the same table of scores.

    settings: of the entry of `pair`, or None: the rewards as they are, best against worst. signs: -1 where less of a score
    is better. samples: of a group. Images are not looked at, so `duplicates` and `degenerate` play no part here.
    """

    strategy: Any
    settings: Pair | None
    signs: Mapping[str, float]
    samples: int

    @classmethod
    def of(cls, recipe: Recipe, online: Online, signs: Mapping[str, float], where: str) -> Chooser:
        """Raises UsageError for an entry that no round could be paired by."""
        pair = pair_settings(recipe, online, where)
        name = online.pair or "best against worst"
        strategy = plugin_options.make("strategy", pair.use, pair.options, f"pair.{name}")
        pair = settled(pair, strategy, name)
        if hasattr(strategy, "compared"):
            raise UsageError(f"{where}.pair: {pair.use} pairs what people or judges have compared, and a round's samples are "
                             "new. Take a strategy on scores, such as topk_bottomk.")  # fmt: skip
        needs = getattr(strategy, "needs", 2)
        if not 2 <= needs <= online.samples:
            raise UsageError(f"{where}.pair: {pair.use} needs {needs} samples per request, and online.samples is "
                             f"{online.samples}. Change one of them.")  # fmt: skip
        unknown = [alias for alias in pair.ties if alias not in pair.weights]
        if unknown:
            raise UsageError(f"pair.{name}: ties names {', '.join(unknown)}, which is not paired on; there are "
                             f"{', '.join(pair.weights)}.")  # fmt: skip
        another = plugin_options.make("strategy", pair.use, pair.options, f"pair.{name}")  # a trial leaves no trace
        _try(another, pair, signs, online.samples)
        return cls(strategy, None if online.pair is None else pair, signs, online.samples)


def _try(strategy: Any, pair: Pair, signs: Mapping[str, float], samples: int) -> None:
    """Pair made-up scores of two requests, so that what would end the first round costs no sampling.

    Raises UsageError for settings that the strategy refuses, PluginError where it fails or breaks its contract.
    """
    draws = np.random.default_rng(0)
    scores = {alias: draws.random(2 * samples) for alias in pair.weights}
    choose_by(pair, strategy, scores, signs, pair.weights, np.repeat([0, 1], samples))


def chosen_pairs(chooser: Chooser, round_: Round) -> list[tuple[int, int, float]]:
    """(winner, loser, gap) by number of sample, within groups; the same in every process."""
    columns, signs, pair = round_.scores, chooser.signs, chooser.settings
    if pair is None:
        columns, signs = {REWARD: round_.rewards}, {REWARD: 1.0}
        pair = Pair(options={"k": 1}, weights={REWARD: 1.0}, normalise="none", tie=0.0)
    groups = np.arange(len(round_.asked)) // chooser.samples
    scores = np.stack([columns[alias] for alias in pair.weights], axis=1)
    there = np.flatnonzero(~lacking(scores, groups, pair.missing))
    seeds = np.array([asked.seed for asked in round_.asked], np.uint64)  # a hash of run, request and sample
    there = there[np.lexsort((seeds[there], groups[there]))]  # a tie is not decided by the number of the sample
    known = {alias: columns[alias][there] for alias in pair.weights}
    found = choose_by(pair, chooser.strategy, known, signs, pair.weights, groups[there]).pairs
    if pair.top_pairs is not None and len(found) > pair.top_pairs:
        found = top_pairs(found, pair.top_pairs, seeds[there[found.win]])
    return [
        (int(there[win]), int(there[lose]), float(gap))
        for win, lose, gap in zip(found.win, found.lose, found.score_gap, strict=True)
    ]
