"""Combine several scores into one value per candidate: the weighted mean of the normalised scores."""

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
    """Return (value [N], scores [N, S]): combined and normalised scores, higher is better, S in the order of `weights`.

    value = sum |weight| * score / sum |weight| over the scores that are present, NaN if there are none; only the
    proportions of the weights matter. A negative weight inverts its score.
    """
    signed = (columns[alias] * (signs[alias] * np.sign(weight)) for alias, weight in weights.items())
    scores = np.stack([normalise(values, groups, how, scope) for values in signed], axis=1)
    sizes = np.abs(np.array(list(weights.values()), dtype=np.float64))
    missing = np.isnan(scores)
    if not missing.any():
        return scores @ (sizes / sizes.sum()), scores
    present = (~missing) @ sizes
    total = np.where(missing, 0.0, scores) @ sizes
    return np.where(present > 0, total / np.where(present > 0, present, 1.0), np.nan), scores
