"""Scores -> pairs, on arrays alone: the core that needs no run folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from prefkit.config import Pair
from prefkit.pair.block import Chosen, ScoreTable, blocks
from prefkit.pair.combine import combine
from prefkit.pair.contract import checked_block, of_requests, pairs_of
from prefkit.pair.normalise import TIES
from prefkit.plugin_guard import guarded, is_own


@dataclass(frozen=True)
class Outcome:
    """pairs and ties: win, lose (places in the table), score_gap, rank_gap, p, agreement, conflict, by.
    value [N] and scores [N, S] are what they were chosen by; ties_of [S] the thresholds of single scorers."""

    pairs: pd.DataFrame
    ties: pd.DataFrame
    value: np.ndarray
    scores: np.ndarray
    ties_of: np.ndarray


def choose_pairs(
    columns: Mapping[str, np.ndarray],
    signs: Mapping[str, float],
    weights: Mapping[str, float],
    groups: np.ndarray,
    strategy: Any,
    *,
    normalise: str = "centred",
    scope: str = "request",
    tie: float = 0.0,
    ties: Mapping[str, float] | None = None,
    name: str = "",
) -> Outcome:
    """columns: alias -> [N] float64, NaN = missing; groups [N] int, equal ones side by side: the request of each.

    A pair whose gap is at or below `tie` (where one scorer decided: below that scorer's own) is a tie. Raises
    PluginError for a strategy that breaks its contract.
    """
    value, scores = combine(columns, signs, weights, groups, normalise, scope)
    ties_of = np.array([(ties or {}).get(alias, 0.0) for alias in weights])
    if hasattr(strategy, "fit"):
        own = is_own(strategy)  # a guest may sort its table in place
        table = (value, scores, ties_of) if own else (value.copy(), scores.copy(), ties_of.copy())
        with guarded(f"strategy {name}", "failed"):
            strategy.fit(ScoreTable(*table, tuple(weights)))
    parts = [_described(found, members, value, scores, ties_of) for members, found in _chosen(strategy, value, scores, groups, name)]  # fmt: skip
    found = pd.concat(parts, ignore_index=True) if parts else _described(_nothing(), np.zeros((0, 0), int), value, scores, ties_of)  # fmt: skip
    order = np.argsort(groups[found.win.to_numpy()], kind="stable")
    found = found.iloc[order] if (np.diff(order) < 0).any() else found
    small = found.score_gap.to_numpy() <= np.where(found.by.to_numpy() >= 0, 0.0, tie)
    return Outcome(found[~small].reset_index(drop=True), found[small].reset_index(drop=True), value, scores, ties_of)


def choose_by(
    config: Pair,
    strategy: Any,
    columns: Mapping[str, np.ndarray],
    signs: Mapping[str, float],
    weights: Mapping[str, float],
    groups: np.ndarray,
) -> Outcome:
    """`choose_pairs` as an entry of `pair` says, before top_pairs. The stage and online training both come here."""
    if config.decimals is not None:
        columns = {alias: np.round(columns[alias], config.decimals) for alias in weights}
    how: dict[str, Any] = {"normalise": config.normalise, "scope": config.scope, "ties": config.ties}
    return choose_pairs(columns, signs, weights, groups, strategy, name=config.use, tie=tie_of(config), **how)


def tie_of(config: Pair) -> float:
    """Gaps of the combined score at or below it are ties."""
    return config.tie if config.tie is not None else TIES.get(config.normalise, 0.0)


def lacking(scores: np.ndarray, groups: np.ndarray, policy: str) -> np.ndarray:
    """[N] bool: the candidates that missing scores leave out. scores [N, S], NaN = missing; policy: pair.missing."""
    gone = np.isnan(scores)
    if policy == "drop_scorer":
        return gone.all(axis=1)
    found = gone.any(axis=1)
    return np.isin(groups, groups[found]) if policy == "drop_request" else found


def _nothing() -> Chosen:
    empty = np.zeros(0, np.int64)
    return Chosen(empty, empty, empty, np.zeros(0))


def _chosen(strategy: Any, value: np.ndarray, scores: np.ndarray, groups: np.ndarray, name: str) -> Iterator[tuple[np.ndarray, Chosen]]:  # fmt: skip
    """Blocks [R, N] of the table and what was chosen in them; a strategy without `block` is asked per request."""
    for members in blocks(groups):
        if members.shape[1] < 2:
            continue
        if hasattr(strategy, "block"):
            with guarded(f"strategy {name}", "failed"):
                found = strategy.block(value[members], scores[members])
            checked_block(found, members.shape, scores.shape[1], name)
        else:
            found = of_requests([pairs_of(strategy, value[m], scores[m], name) for m in members])
        yield members, found


def _described(found: Chosen, members: np.ndarray, value: np.ndarray, scores: np.ndarray, ties_of: np.ndarray) -> pd.DataFrame:  # fmt: skip
    """agreement: the share of the scorers there that see the winner ahead; conflict: one sees it ahead, one behind."""
    win, lose = members[found.row, found.win], members[found.row, found.lose]
    order = np.argsort(-value[members], axis=1, kind="stable")
    ranks = np.empty(order.shape, np.int32)
    np.put_along_axis(ranks, order, np.arange(order.shape[1], dtype=np.int32)[None, :], 1)
    difference = scores[win] - scores[lose]
    ahead = difference > ties_of
    there = (~np.isnan(difference)).sum(axis=1)
    return pd.DataFrame(
        {
            "win": win,
            "lose": lose,
            "score_gap": found.gap,
            "rank_gap": ranks[found.row, found.lose] - ranks[found.row, found.win],
            "p": 1 / (1 + np.exp(-found.gap)),
            "agreement": ahead.sum(axis=1) / np.maximum(there, 1),
            "conflict": ahead.any(axis=1) & (difference < -ties_of).any(axis=1),
            "by": np.full(len(win), -1) if found.by is None else found.by,
        }
    )


def top_pairs(pairs: pd.DataFrame, count: int, tie_break: np.ndarray) -> pd.DataFrame:
    """The `count` pairs on which most scorers agree, the wider gap first among equals; in the order they came in.

    tie_break [N]: decides between equals, so that those of the first requests have no advantage.
    """
    order = np.lexsort((tie_break, -pairs.score_gap.to_numpy(), -pairs.agreement.to_numpy()))
    return pairs.iloc[np.sort(order[:count])].reset_index(drop=True)
