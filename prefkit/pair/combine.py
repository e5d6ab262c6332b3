"""Combine several scores into one value per candidate: the weighted mean of the normalised scores."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from prefkit.pair.normalise import normalise

BITS = 40  # of the 53 of float64


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
    A mean of several scores is rounded to BITS significant bits, and is 0 if the candidate's scores cancel to within as
    many bits: equal means of different scores differ in the last bits of float64, and would become pairs at `tie: 0` or be
    on different sides of a threshold.
    """
    signed = (columns[alias] * (signs[alias] * np.sign(weight)) for alias, weight in weights.items())
    scores = np.stack([normalise(values, groups, how, scope) for values in signed], axis=1)
    sizes = np.abs(np.array(list(weights.values()), dtype=np.float64))
    missing = np.isnan(scores)
    if not missing.any():
        return _rounded(scores @ (sizes / sizes.sum()), scores), scores
    present = (~missing) @ sizes
    total = np.where(missing, 0.0, scores) @ sizes
    return _rounded(np.where(present > 0, total / np.where(present > 0, present, 1.0), np.nan), scores), scores


def _rounded(value: np.ndarray, scores: np.ndarray) -> np.ndarray:
    if scores.shape[1] == 1:
        return value
    cancelled = np.abs(value) < np.ldexp(np.nanmax(np.abs(scores), axis=1, initial=0.0), -BITS)
    mantissa, exponent = np.frexp(np.where(cancelled, 0.0, value))
    return np.ldexp(np.rint(np.ldexp(mantissa, BITS)), exponent - BITS)
