"""Standings of several models: Bradley-Terry strengths with intervals, from comparisons of their images.

The strength of a model is the log odds with which its image beats one of the base (without a base: of an average model).
Ties count as half a win for both. Every request has the same weight for each pair of models, however many of its images were
compared. Intervals are 95 % percentile bootstraps over requests, in which all strengths are fitted again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from prefkit.pair.votes import fit_bradley_terry

SAMPLES = 500
PRIOR = 0.5  # precision of the normal prior, which keeps the strength of a model that always wins finite
BASE = "base"


def standings(games: pd.DataFrame, seed: int = 0) -> dict[str, Any] | None:
    """Return the strongest model first, or None without games.

    games: request_id, a, b (names of two different models) and won (1, 0.5 or 0 for a). The result has `models`, a list
    of {model, strength, low, high, points (mean result, 0 to 1), games}, and `games`, `requests` and `ties` (fraction).
    """
    if games.empty:
        return None
    names = sorted({*games.a, *games.b}, key=lambda name: (name != BASE, name))
    won = _results(games, names)
    middle = _strengths(won.sum(axis=0), names)
    rng = np.random.default_rng(seed)
    drawn = np.stack([_strengths(won[rng.integers(0, len(won), len(won))].sum(axis=0), names) for _ in range(SAMPLES)])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    rows = []
    for i, name in enumerate(names):
        against = won[:, i].sum() + won[:, :, i].sum()
        row = {"model": name, "strength": float(middle[i]), "low": float(low[i]), "high": float(high[i])}
        played = int(((games.a == name) | (games.b == name)).sum())
        rows.append(row | {"points": float(won[:, i].sum() / against), "games": played})
    rows.sort(key=lambda row: -row["strength"])
    ties = float((games.won == 0.5).mean())
    return {"models": rows, "games": len(games), "requests": int(games.request_id.nunique()), "ties": ties}


def _results(games: pd.DataFrame, names: list[str]) -> np.ndarray:
    """Return [R, K, K]: the mean result of model i against model j on each request; 0 both ways if they did not meet."""
    a, b = (games[side].map(names.index).to_numpy(np.int64) for side in ("a", "b"))
    requests = pd.factorize(games.request_id)[0]
    shape = (int(requests.max()) + 1, len(names), len(names))
    sums, counts = np.zeros(shape), np.zeros(shape)
    value = games.won.to_numpy(np.float64)
    for first, second, points in ((a, b, value), (b, a, 1 - value)):
        np.add.at(sums, (requests, first, second), points)
        np.add.at(counts, (requests, first, second), 1)
    return np.divide(sums, counts, out=np.zeros(shape), where=counts > 0)


def _strengths(won: np.ndarray, names: list[str]) -> np.ndarray:
    strengths = fit_bradley_terry(won, PRIOR)
    return strengths - strengths[names.index(BASE)] if BASE in names else strengths
