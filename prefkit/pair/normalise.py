"""One scorer's numbers made comparable, by name: within each request, or over the whole run."""

from __future__ import annotations

import numpy as np

from prefkit.errors import UsageError

NORMALISATIONS = ("centred", "none", "minmax", "zscore", "rank", "softmax", "winrate")
#: gaps of these are in deviations, where 0.1 is noise; those of the others have no common size
TIES = {"centred": 0.1, "zscore": 0.1}
#: normalisations that do not change when all values are multiplied by one number
SCALE_FREE = ("centred", "zscore", "minmax")
LARGEST = 1e300


def normalise(values: np.ndarray, groups: np.ndarray, how: str, scope: str = "request") -> np.ndarray:
    """values [N] float64 (NaN = missing), groups [N] int: the request of each -> [N]. Higher stays higher.

    centred  minus the request's mean, divided by the pooled within-request standard deviation
             sqrt(sum of squares / sum of (n_r - 1)): a request of mere noise stays small
    zscore   minus the request's mean, divided by the request's own deviation
    minmax   (v - min) / (max - min)
    rank     mean rank among equals, from 0 (worst) to 1 (best)
    softmax  exp(v) / sum exp
    winrate  mean over the others of sigmoid(v - v_other), as CaPO calibrates rewards (arXiv 2502.02588)
    none     as it is, but for numbers beyond 1e300, whose differences would be infinite: they count as 1e300
    scope: request | global (all candidates count as one request; winrate needs requests).
    Where all are equal, all get the same number (0; softmax 1/n, winrate 1/2): nothing is preferred.
    """
    if how not in NORMALISATIONS:
        raise UsageError(f"pair: normalise {how!r} is not known; choose one of {', '.join(NORMALISATIONS)}.")
    if scope not in ("request", "global"):
        raise UsageError(f"pair: scope {scope!r} is unknown; choose request or global.")
    values = values.astype(np.float64)
    present = np.flatnonzero(~np.isnan(values))
    if how == "none" or not len(present):
        return values.clip(-LARGEST, LARGEST)
    if how in SCALE_FREE:
        values = in_range(values)
    found = np.full(len(values), np.nan)
    codes = groups[present].astype(np.int64) if scope == "request" else np.zeros(len(present), np.int64)
    work = {"centred": _deviations, "zscore": _deviations, "rank": _ranks, "winrate": _winrate}.get(how, _shares)
    with np.errstate(over="ignore", under="ignore"):  # exp and sigmoid of differences too large for a float are 0 or 1
        found[present] = work(values[present], codes, how)
    return found


def in_range(values: np.ndarray) -> np.ndarray:
    """values [N] times a power of two, which is exact, where their squares would overflow or vanish."""
    largest = float(np.nanmax(np.abs(values), initial=0.0))
    return values if 1e-100 < largest < 1e100 or largest == 0 else np.ldexp(values, -int(np.frexp(largest)[1]))


def _deviations(values: np.ndarray, codes: np.ndarray, how: str) -> np.ndarray:
    count = np.bincount(codes).astype(np.float64)
    centred = values - (np.bincount(codes, values) / np.maximum(count, 1))[codes]
    squares = np.bincount(codes, centred**2)
    # below this a spread is rounding: values of size v carry an error of about v * 2^-52
    floor = 1e-12 * max(1.0, float(np.abs(values).max()))
    if how == "centred":
        scale = np.sqrt(squares.sum() / max(float((count - 1).clip(min=0).sum()), 1.0))
        return centred / scale if scale > floor else np.zeros_like(values)
    own = np.sqrt(squares / np.maximum(count - 1, 1))
    return np.where(own[codes] > floor, centred / np.where(own > floor, own, 1.0)[codes], 0.0)


def _shares(values: np.ndarray, codes: np.ndarray, how: str) -> np.ndarray:
    size = int(codes.max()) + 1
    high = np.full(size, -np.inf)
    np.maximum.at(high, codes, values)
    if how == "softmax":
        weight = np.exp(values - high[codes])
        return weight / np.bincount(codes, weight)[codes]
    low = np.full(size, np.inf)
    np.minimum.at(low, codes, values)
    span = (high - low)[codes]
    return np.where(span > 0, (values - low[codes]) / np.where(span > 0, span, 1.0), 0.0)


def _ranks(values: np.ndarray, codes: np.ndarray, how: str) -> np.ndarray:
    order = np.lexsort((values, codes))
    v, c = values[order], codes[order]
    start = np.r_[True, c[1:] != c[:-1]]
    run = np.cumsum(start | np.r_[True, v[1:] != v[:-1]]) - 1
    place = np.arange(len(v)) - np.flatnonzero(start)[np.cumsum(start) - 1]
    mean = (np.bincount(run, place) / np.bincount(run))[run]
    count = np.bincount(codes)[c]
    equal = np.bincount(run)[run] == count
    found = np.empty(len(v))
    found[order] = np.where(equal, 0.0, mean / np.maximum(count - 1, 1))
    return found


def _winrate(values: np.ndarray, codes: np.ndarray, how: str) -> np.ndarray:
    from prefkit.pair.block import blocks

    order = np.argsort(codes, kind="stable")
    found = np.full(len(values), 0.5)
    for members in blocks(codes[order]):
        rows = order[members]
        count = rows.shape[1]
        if count < 2:
            continue
        gap = values[rows][:, :, None] - values[rows][:, None, :]
        total = (0.5 + 0.5 * np.tanh(gap / 2)).sum(axis=2) - 0.5  # sigmoid without overflow; its own 1/2 taken off
        found[rows] = total / (count - 1)
    return found
