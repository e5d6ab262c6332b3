"""Normalise the scores of each scorer, and combine several scorers' into one value per candidate: their weighted mean."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from prefkit.errors import UsageError
from prefkit.pair.block import blocks

NORMALISATIONS = ("centred", "none", "minmax", "zscore", "rank", "softmax", "winrate")
#: normalisation -> default tie threshold (0.1 standard deviations); 0 for the others, which have no common scale
TIES = {"centred": 0.1, "zscore": 0.1}
#: normalisations whose result does not change if all values are multiplied by a constant
SCALE_FREE = ("centred", "zscore", "minmax")
LARGEST = 1e300
BITS = 40  # of the 53 of float64, to which a mean of several scores is rounded


def normalise(values: np.ndarray, groups: np.ndarray, how: str, scope: str = "request") -> np.ndarray:
    """Normalise values [N] float64 (NaN = missing) without changing their ranking. groups [N]: each value's request.

    centred  (v - the request's mean) / s, with s = sqrt(sum of squares / sum of (n_r - 1)), the standard deviation
             pooled over all requests: values that differ by noise alone within a request stay close to 0
    zscore   (v - the request's mean) / the request's own standard deviation
    minmax   (v - min) / (max - min)
    rank     rank from 0 (worst) to 1 (best); equal values get their mean rank
    softmax  exp(v) / sum exp
    winrate  mean of sigmoid(v - u) over the request's other values u, as CaPO calibrates rewards (arXiv 2502.02588)
    none     unchanged, clipped to 1e300 so that differences stay finite
    scope: request | global (all candidates count as one request; not for winrate).
    If all values of a request are equal, they become 0 (softmax: 1/n, winrate: 1/2).
    Raises UsageError for an unknown normalisation or scope.
    """
    if how not in NORMALISATIONS:
        raise UsageError(f"pair: normalise {how!r} is unknown; choose one of {', '.join(NORMALISATIONS)}.")
    if scope not in ("request", "global") or (scope, how) == ("global", "winrate"):
        raise UsageError(
            f"pair: normalise {how} does not work with scope {scope!r}; choose "
            f"request{'' if how == 'winrate' else ' or global'}."
        )
    values = values.astype(np.float64)
    present = np.flatnonzero(~np.isnan(values))
    if how == "none" or not len(present):
        return values.clip(-LARGEST, LARGEST)
    if how in SCALE_FREE:
        values = in_range(values)
    result = np.full(len(values), np.nan)
    codes = groups[present].astype(np.int64) if scope == "request" else np.zeros(len(present), np.int64)
    function = {"centred": _standardised, "zscore": _standardised, "winrate": _winrate}.get(how, _scaled)
    with np.errstate(over="ignore", under="ignore"):  # exp and sigmoid of differences too large for a float are 0 or 1
        result[present] = function(values[present], codes, how)
    return result


def in_range(values: np.ndarray) -> np.ndarray:
    """Scale values [N] by a power of two (which is exact) if their squares would overflow or underflow."""
    largest = float(np.nanmax(np.abs(values), initial=0.0))
    return values if 1e-100 < largest < 1e100 or largest == 0 else np.ldexp(values, -int(np.frexp(largest)[1]))


def _standardised(values: np.ndarray, codes: np.ndarray, how: str) -> np.ndarray:
    count = np.bincount(codes).astype(np.float64)
    centred = values - (np.bincount(codes, values) / np.maximum(count, 1))[codes]
    squares = np.bincount(codes, centred**2)
    # a smaller spread is only rounding error, which is about v * 2^-52 for values of size v
    floor = 1e-12 * max(1.0, float(np.abs(values).max()))
    if how == "centred":
        scale = np.sqrt(squares.sum() / max(float((count - 1).clip(min=0).sum()), 1.0))
        return centred / scale if scale > floor else np.zeros_like(values)
    std = np.sqrt(squares / np.maximum(count - 1, 1))
    return np.where(std[codes] > floor, centred / np.where(std > floor, std, 1.0)[codes], 0.0)


def _scaled(values: np.ndarray, codes: np.ndarray, how: str) -> np.ndarray:
    grouped = pd.Series(values).groupby(codes)
    low, high = (grouped.transform(name).to_numpy() for name in ("min", "max"))
    if how == "softmax":
        weight = np.exp(values - high)
        return weight / np.bincount(codes, weight)[codes]
    if how == "minmax":
        return np.where(high > low, (values - low) / np.where(high > low, high - low, 1.0), 0.0)
    count = np.bincount(codes)[codes]
    return np.where(high > low, (grouped.rank().to_numpy() - 1) / np.maximum(count - 1, 1), 0.0)


def _winrate(values: np.ndarray, codes: np.ndarray, how: str) -> np.ndarray:
    order = np.argsort(codes, kind="stable")
    result = np.full(len(values), 0.5)
    for members in blocks(codes[order]):
        rows = order[members]
        count = rows.shape[1]
        if count < 2:
            continue
        gap = values[rows][:, :, None] - values[rows][:, None, :]
        total = (0.5 + 0.5 * np.tanh(gap / 2)).sum(axis=2) - 0.5  # sum of sigmoid, minus sigmoid(0) with itself
        result[rows] = total / (count - 1)
    return result


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
