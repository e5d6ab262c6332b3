"""Several scorers' numbers as one value per candidate: normalised in the open, then their weighted mean."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from prefkit.errors import UsageError

NORMALISATIONS = ("centred", "zscore", "none")


def normalise(values: np.ndarray, groups: np.ndarray, how: str) -> np.ndarray:
    """values [N] float64 (NaN = missing), groups [N] int: the request of each -> [N].

    centred  minus the request's mean, divided by the pooled within-request standard deviation
             sqrt(sum of squares / sum of (n_r - 1)): a request of mere noise stays small
    zscore   minus the request's mean, divided by the request's own deviation
    none     as it is
    A deviation of 0 gives 0: where all are equal, nothing is preferred.
    """
    if how == "none":
        return values.astype(np.float64)
    if how not in NORMALISATIONS:
        raise UsageError(f"pair: normalise {how!r} is not known; choose one of {', '.join(NORMALISATIONS)}.")
    present = ~np.isnan(values)
    size = int(groups.max()) + 1 if len(groups) else 0
    count = np.bincount(groups[present], minlength=size).astype(np.float64)
    mean = np.bincount(groups[present], values[present], minlength=size) / np.maximum(count, 1)
    centred = np.where(present, values - mean[groups], np.nan)
    squares = np.bincount(groups[present], centred[present] ** 2, minlength=size)
    # below this a spread is rounding: values of size v carry an error of about v * 2^-52
    floor = 1e-12 * max(1.0, float(np.abs(values[present]).max(initial=0.0)))
    if how == "centred":
        scale = np.full(size, np.sqrt(squares.sum() / max(float((count - 1).clip(min=0).sum()), 1.0)))
    else:
        scale = np.sqrt(squares / np.maximum(count - 1, 1))
    return np.where(
        scale[groups] > floor, centred / np.where(scale > floor, scale, 1.0)[groups], np.where(present, 0.0, np.nan)
    )


def combine(
    columns: Mapping[str, np.ndarray],
    signs: Mapping[str, float],
    weights: Mapping[str, float],
    groups: np.ndarray,
    how: str,
) -> tuple[np.ndarray, np.ndarray]:
    """(value [N], scores [N, S] after sign and normalisation, columns in the order of `weights`).

    value is the sum of weight * score over the sum of |weight|, so that gaps, ties and p do not depend on the size of
    the weights. A candidate that lacks any weighted score has value NaN.
    """
    scores = np.stack([normalise(columns[a] * signs[a], groups, how) for a in weights], axis=1)
    shares = np.array(list(weights.values()), dtype=np.float64)
    return scores @ (shares / np.abs(shares).sum()), scores
