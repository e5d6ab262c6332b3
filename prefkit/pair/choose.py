"""Choose pairs by scores given as arrays, without a run folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from prefkit.config import Pair
from prefkit.pair.block import Aspects, Chosen, ScoreTable, blocks
from prefkit.pair.contract import check_block, of_requests, pairs_of
from prefkit.pair.normalise import TIES, combine
from prefkit.plugin_guard import guarded, is_own


@dataclass(frozen=True)
class Outcome:
    """The chosen pairs and the ties, with the columns contract.COLUMNS; win and lose are indices into N candidates.

    value [N], scores [N, S]: the combined and the normalised scores; ties_of [S]: each scorer's tie threshold.
    """

    pairs: pd.DataFrame
    ties: pd.DataFrame
    value: np.ndarray
    scores: np.ndarray
    ties_of: np.ndarray


def choose_by(
    config: Pair,
    strategy: Any,
    columns: Mapping[str, np.ndarray],
    signs: Mapping[str, float],
    weights: Mapping[str, float],
    groups: np.ndarray,
    aspects: Aspects | None = None,
) -> Outcome:
    """Choose pairs by the settings of a `pair` entry (except top_pairs), for the pair stage and online training.

    columns: score name -> values [N] float64, NaN = missing; groups [N] sorted int: each candidate's request. A pair
    with a gap of at most `tie` is a tie; if a single scorer chose the pair, only a gap of 0 is a tie. aspects: of the
    candidates, for a strategy with `read_aspects`; the pairs then have the column `aspect`. Raises
    PluginError if the strategy fails or returns an invalid result.
    """
    name = config.use
    if config.decimals is not None:
        columns = {alias: np.round(columns[alias], config.decimals) for alias in weights}
    value, scores = combine(columns, signs, weights, groups, config.normalise, config.scope)
    ties_of = np.array([config.ties.get(alias, 0.0) for alias in weights])
    if hasattr(strategy, "fit"):
        table = (value, scores, ties_of)
        if not is_own(strategy):  # a user's plug-in may change the table in place
            table = (value.copy(), scores.copy(), ties_of.copy())
        with guarded(f"strategy {name}", "failed"):
            strategy.fit(ScoreTable(*table, tuple(weights)))
    parts = [
        _described(chosen, members, value, scores, ties_of, aspects)
        for members, chosen in _chosen(strategy, value, scores, groups, name, aspects)
    ]
    pairs = pd.concat(parts or [_described(of_requests([]), np.zeros((0, 0), int), value, scores, ties_of, aspects)])
    pairs = pairs.iloc[np.argsort(groups[pairs.win.to_numpy()], kind="stable")]
    tied = pairs.score_gap.to_numpy() <= np.where(pairs.by.to_numpy() >= 0, 0.0, tie_of(config))
    return Outcome(pairs[~tied].reset_index(drop=True), pairs[tied].reset_index(drop=True), value, scores, ties_of)


def tie_of(config: Pair) -> float:
    """Return the largest gap between combined scores that counts as a tie."""
    return config.tie if config.tie is not None else TIES.get(config.normalise, 0.0)


def lacking(scores: np.ndarray, groups: np.ndarray, policy: str) -> np.ndarray:
    """Return a mask [N] of candidates to leave out. scores [N, S]: NaN = missing; policy: the setting `missing`."""
    missing = np.isnan(scores)
    if policy == "drop_scorer":
        return missing.all(axis=1)
    incomplete = missing.any(axis=1)
    return np.isin(groups, groups[incomplete]) if policy == "drop_request" else incomplete


def _chosen(
    strategy: Any, value: np.ndarray, scores: np.ndarray, groups: np.ndarray, name: str, aspects: Aspects | None
) -> Iterator[tuple[np.ndarray, Chosen]]:
    """Yield (candidate indices [R, N] of a block, its pairs). A strategy without `block` is called once per request."""
    for members in blocks(groups):
        if members.shape[1] < 2:
            continue
        if hasattr(strategy, "block"):
            given = () if aspects is None else (aspects.values[members],)
            with guarded(f"strategy {name}", "failed"):
                chosen = strategy.block(value[members], scores[members], *given)
            count = None if aspects is None else aspects.values.shape[1]
            check_block(chosen, members.shape, scores.shape[1], name, count)
        else:
            chosen = of_requests([pairs_of(strategy, value[m], scores[m], name) for m in members])
        yield members, chosen


def _described(
    chosen: Chosen,
    members: np.ndarray,
    value: np.ndarray,
    scores: np.ndarray,
    ties_of: np.ndarray,
    aspects: Aspects | None = None,
) -> pd.DataFrame:
    """Return the pairs with the columns contract.COLUMNS. agreement: fraction of the present scores that rank the
    winner higher; conflict: True if at least one score ranks the winner higher and at least one the loser."""
    win, lose = members[chosen.row, chosen.win], members[chosen.row, chosen.lose]
    order = np.argsort(-value[members], axis=1, kind="stable")
    ranks = np.empty(order.shape, np.int32)
    np.put_along_axis(ranks, order, np.arange(order.shape[1], dtype=np.int32)[None, :], 1)
    difference = scores[win] - scores[lose]
    ahead = difference > ties_of
    present = (~np.isnan(difference)).sum(axis=1)
    pairs = pd.DataFrame(
        {
            "win": win,
            "lose": lose,
            "score_gap": chosen.gap,
            "rank_gap": ranks[chosen.row, chosen.lose] - ranks[chosen.row, chosen.win],
            "p": 1 / (1 + np.exp(-chosen.gap)),
            "agreement": ahead.sum(axis=1) / np.maximum(present, 1),
            "conflict": ahead.any(axis=1) & (difference < -ties_of).any(axis=1),
            "by": np.full(len(win), -1) if chosen.by is None else chosen.by,
        }
    )
    if aspects is not None:
        index = np.zeros(0, int) if chosen.aspect is None else chosen.aspect
        pairs["aspect"] = np.array(aspects.names, object)[aspects.code[win, index]]
    return pairs


def top_pairs(pairs: pd.DataFrame, count: int, tie_break: np.ndarray) -> pd.DataFrame:
    """Select the `count` pairs with the highest agreement, then the widest gap, and keep their order.

    tie_break [P]: decides if agreement and gap are equal, so that the first requests have no advantage.
    """
    order = np.lexsort((tie_break, -pairs.score_gap.to_numpy(), -pairs.agreement.to_numpy()))
    return pairs.iloc[np.sort(order[:count])].reset_index(drop=True)
