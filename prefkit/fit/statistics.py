"""Means and correlations with 95 % percentile bootstrap intervals, as dicts with keys mean, low, high and n."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prefkit.types import caption_key

RESAMPLES = 1000


def estimate(values: Sequence[float] | np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Estimate the mean of independent values, such as one per user. Without values, the mean is None."""
    sample = np.asarray(values, np.float64)
    if not len(sample):
        return _interval(None, [], 0)
    rng = np.random.default_rng(seed)
    means = [sample[rng.integers(0, len(sample), len(sample))].mean() for _ in range(RESAMPLES)]
    return _interval(float(sample.mean()), means, len(sample))


def clustered(values: Sequence[float], texts: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Estimate the mean, resampling prompts (`texts`), because the values of one prompt are not independent."""
    if not len(values):
        return _interval(None, [], 0)
    _, group = np.unique([caption_key(text) for text in texts], return_inverse=True)
    sums, counts = np.bincount(group, weights=np.asarray(values, float)), np.bincount(group)
    drawn = np.random.default_rng(seed).integers(0, len(sums), (RESAMPLES, len(sums)))
    return _interval(float(np.mean(values)), sums[drawn].sum(1) / counts[drawn].sum(1), len(values))


def correlation(x: np.ndarray, y: np.ndarray, texts: Sequence[str], ranks: bool) -> dict[str, Any]:
    """Estimate Pearson's correlation (Spearman's with `ranks`), resampling prompts; None if x or y is constant."""
    _, group = np.unique([caption_key(text) for text in texts], return_inverse=True)
    members = [np.flatnonzero(group == g) for g in range(group.max() + 1)]
    rng = np.random.default_rng(0)
    drawn = [
        np.concatenate([members[g] for g in rng.integers(0, len(members), len(members))]) for _ in range(RESAMPLES)
    ]
    values = [v for rows in drawn if (v := pearson(x[rows], y[rows], ranks)) is not None]
    return _interval(pearson(x, y, ranks), values, len(x))


def pearson(x: np.ndarray, y: np.ndarray, ranks: bool) -> float | None:
    """Return Pearson's correlation, or Spearman's with `ranks`; None if x or y is constant."""
    if ranks:
        import pandas as pd

        x, y = pd.Series(x).rank().to_numpy(), pd.Series(y).rank().to_numpy()
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _interval(mean: float | None, resampled: Any, n: int) -> dict[str, Any]:
    known = mean is not None and len(resampled) > 0
    low, high = np.quantile(resampled, [0.025, 0.975]).tolist() if known else (None, None)
    return {"mean": mean, "low": low, "high": high, "n": n}
