"""Several scorers' numbers as one value per candidate: normalised in the open, then their weighted mean."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from prefkit.pair.normalise import normalise


def combine(
    columns: Mapping[str, np.ndarray],
    signs: Mapping[str, float],
    weights: Mapping[str, float],
    groups: np.ndarray,
    how: str,
    scope: str = "request",
) -> tuple[np.ndarray, np.ndarray]:
    """(value [N], scores [N, S] normalised and turned so that higher is wanted, columns in the order of `weights`).

    value is the sum of |weight| * score over the sum of |weight| of the scores that are there, so that gaps, ties and p
    do not depend on the size of the weights; NaN where a candidate has none. A negative weight turns its score round.
    """
    turned = {a: columns[a] * (signs[a] * np.sign(w)) for a, w in weights.items()}
    scores = np.stack([normalise(values, groups, how, scope) for values in turned.values()], axis=1)
    shares = np.abs(np.array(list(weights.values()), dtype=np.float64))
    gone = np.isnan(scores)
    if not gone.any():
        return scores @ (shares / shares.sum()), scores
    there = (~gone) @ shares
    total = np.where(gone, 0.0, scores) @ shares
    return np.where(there > 0, total / np.where(there > 0, there, 1.0), np.nan), scores
