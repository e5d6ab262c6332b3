"""A mean over users or outfits with its 95 % percentile bootstrap interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

RESAMPLES = 1000


def estimate(values: Sequence[float] | np.ndarray, seed: int = 0) -> dict[str, Any]:
    """mean, low, high (95 %), n; the mean of nothing is null."""
    found = np.asarray(values, np.float64)
    if not len(found):
        return {"mean": None, "low": None, "high": None, "n": 0}
    rng = np.random.default_rng(seed)
    means = [found[rng.integers(0, len(found), len(found))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": float(found.mean()), "low": float(low), "high": float(high), "n": len(found)}
