"""Agreement statistics for annotators and scorers, in numpy float64.

A verdict is 1 (the pair's first candidate is better), -1 (the second is better) or 0 (tie). Intervals are percentile
bootstraps over whole groups (pairs or requests), because verdicts within a group are not independent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SAMPLES = 2000
#: maximum number of random draws in one bootstrap; with many groups, fewer bootstrap samples are drawn
MOST_DRAWS = 40_000_000
VERDICTS = (-1, 0, 1)


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, from n items in `groups` groups. value, low, high: None if undefined."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    groups: int


def bootstrap(sums: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], n: int, seed: int = 0) -> Estimate:
    """Estimate a statistic of sums over all groups, with a bootstrap interval. n: number of items, only stored.

    sums [G, K]: K sums for each group; statistic: maps the totals [S, K] of S bootstrap samples to [S] values (NaN:
    undefined). Groups are resampled with replacement (Efron & Tibshirani 1993, chapter 13).
    """
    groups = len(sums)
    value = float(statistic(sums.sum(axis=0, keepdims=True))[0]) if groups else np.nan
    if not np.isfinite(value):
        return Estimate(None, None, None, n, groups)
    rng = np.random.default_rng(seed)
    samples = int(np.clip(MOST_DRAWS // groups, 200, SAMPLES))
    totals = np.empty((samples, sums.shape[1]))
    for i in range(samples):
        totals[i] = np.bincount(rng.integers(0, groups, groups), minlength=groups) @ sums
    drawn = statistic(totals)
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(value, float(low), float(high), n, groups)


def fraction(values: np.ndarray, groups: np.ndarray, seed: int = 0) -> Estimate:
    """Estimate the mean of values [n] in 0..1, all with the same weight. groups [n]: integer codes of their groups."""
    values, groups = np.asarray(values, np.float64), np.unique(groups, return_inverse=True)[1]
    sums = np.stack([np.bincount(groups, values), np.bincount(groups)], axis=1).astype(np.float64)
    return bootstrap(sums, ratio, len(values), seed)


def mean_of_groups(values: np.ndarray, groups: np.ndarray) -> Estimate:
    """Estimate the mean of the groups' means, so that every group has the same weight."""
    means = np.bincount(groups, np.asarray(values, np.float64)) / np.bincount(groups)
    return bootstrap(np.stack([means, np.ones(len(means))], axis=1), ratio, len(values))


def ratio(totals: np.ndarray) -> np.ndarray:
    """Divide the first column of totals [S, 2] by the second -> [S]; NaN for 0 / 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return totals[:, 0] / totals[:, 1]


def verdict_counts(units: np.ndarray, verdicts: np.ndarray) -> np.ndarray:
    """Count the verdicts -1, 0 and 1 on each pair -> [U, 3]. units [n]: pair of each verdict, 0..U-1; verdicts [n]."""
    counts = np.zeros((int(units.max()) + 1 if len(units) else 0, len(VERDICTS)))
    np.add.at(counts, (units, np.asarray(verdicts, np.int64) + 1), 1)
    return counts


def raw_agreement(counts: np.ndarray) -> Estimate:
    """Estimate how often two annotators of a candidate pair agree, averaged over pairs; a tie agrees only with a tie.

    Candidate pairs with fewer than two verdicts are left out.
    """
    counts = counts[counts.sum(axis=1) >= 2]
    n = counts.sum(axis=1)
    agreeing = (counts * (counts - 1)).sum(axis=1) / np.maximum(n * (n - 1), 1)
    return bootstrap(np.stack([agreeing, np.ones(len(n))], axis=1), ratio, int(n.sum()))


def krippendorff_alpha(counts: np.ndarray) -> Estimate:
    """Estimate nominal alpha = 1 - D_observed / D_expected. counts [U, V]; rows with under 2 verdicts are left out.

    Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability": the coincidence matrix o_cc' sums over units
    n_uc (n_uc' - [c = c']) / (n_u - 1). 1 is full agreement, 0 is chance. Undefined if all verdicts are equal.
    """
    counts = counts[counts.sum(axis=1) >= 2]
    n = counts.sum(axis=1)
    pairs = counts[:, :, None] * (counts[:, None, :] - np.eye(counts.shape[1]))
    coincidences = (pairs / np.maximum(n - 1, 1)[:, None, None]).reshape(len(counts), counts.shape[1] ** 2)
    return bootstrap(coincidences, lambda totals: _alpha(totals, counts.shape[1]), int(n.sum()))


def _alpha(totals: np.ndarray, kinds: int) -> np.ndarray:
    """Compute alpha [S] from totals [S, V * V], the flattened coincidence matrices of S samples."""
    matrix = totals.reshape(len(totals), kinds, kinds)
    margins = matrix.sum(axis=2)
    total = margins.sum(axis=1)
    same = np.trace(matrix, axis1=1, axis2=2)
    expected = (total**2 - (margins**2).sum(axis=1)) / (total - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected > 0, 1 - (total - same) / expected, np.nan)


def majority(counts: np.ndarray) -> np.ndarray:
    """Return [U] the more frequent of verdicts 1 and -1, or 0 if they are equally frequent. counts [U, 3]: -1, 0, 1."""
    return np.sign(counts[:, 2] - counts[:, 0])


def leave_one_out(units: np.ndarray, verdicts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compare each verdict with the other verdicts on its pair. A tie counts as half an agreement, as for scorers.

    units, verdicts, counts: see `verdict_counts`. Returns two arrays [n]: the fraction of the other votes (without
    ties) that agree with the verdict, NaN without votes; and 1 if their majority agrees, else 0, NaN without majority.
    """
    others = counts[units] - np.eye(3)[np.asarray(verdicts, np.int64) + 1]
    clear = others[:, 0] + others[:, 2]
    lead = majority(others)
    with np.errstate(invalid="ignore", divide="ignore"):
        single = np.where(verdicts == 0, 0.5, np.where(verdicts > 0, others[:, 2], others[:, 0]) / clear)
    most = np.where(verdicts == 0, 0.5, (verdicts == lead).astype(np.float64))
    return np.where(clear > 0, single, np.nan), np.where(lead != 0, most, np.nan)
