"""Statistics of an evaluation, in pure numpy and float64.

Means and intervals treat the request as the unit of sampling: the seeds of one request are not independent evidence, so
they are averaged first.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np

#: z of the two-sided 5 % level plus z of 80 % power: 1.959964 + 0.841621
DETECTABLE_Z = 2.801585
#: with fewer requests, even a sign test with all outcomes equal (p = 2 / 2^n) does not reach 5 %
ENOUGH_REQUESTS = 20  # with fewer, a warning says what an interval can show
MIN_REQUESTS = 6
#: a model counts as unchanged if its images moved by less than this fraction of the distance between two seeds
UNCHANGED = 0.05


def paired_outcomes(base: np.ndarray, tuned: np.ndarray, tie: float = 0.0) -> np.ndarray:
    """Return the outcome of each pair of [n] base and tuned scores (higher is better).

    Outcomes [n] are 1 where tuned wins, 0.5 where |gap| <= tie, 0 where base wins.
    """
    gap = np.asarray(tuned, np.float64) - np.asarray(base, np.float64)
    return np.where(np.abs(gap) <= tie, 0.5, np.where(gap > 0, 1.0, 0.0))


def request_means(values: np.ndarray, requests: np.ndarray) -> np.ndarray:
    """Return each request's mean, [R]. values: [n]; requests: the values' request codes [n], each of 0..R-1 occurs."""
    sums = np.bincount(requests, weights=np.asarray(values, np.float64))
    return sums / np.bincount(requests)


def bootstrap_interval(
    values: np.ndarray, samples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Return the interval (low, high) for the mean of [R] per-request values, by a percentile bootstrap over requests.

    Efron & Tibshirani 1993, chapter 13. Equal seeds give equal intervals. R must be at least 1.
    """
    values = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    means = np.empty(samples)
    block = max(1, 2_000_000 // len(values))
    for start in range(0, samples, block):
        stop = min(start + block, samples)
        means[start:stop] = values[rng.integers(0, len(values), (stop - start, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def minimum_detectable(values: np.ndarray) -> float | None:
    """Return the smallest distance of the win rate from 1/2 that this number of requests detects with 80 % power.

    (z_0.975 + z_0.80) * s / sqrt(R), with s the std (R - 1) of the [R] per-request win rates. None with fewer than two
    requests or if s is 0: the noise is then unknown.
    """
    values = np.asarray(values, np.float64)
    if len(values) < 2 or np.ptp(values) == 0:
        return None
    return float(DETECTABLE_Z * values.std(ddof=1) / np.sqrt(len(values)))


def limits_of_few(count: int) -> str | None:
    """Return a sentence about what an interval over so few requests can show; None from ENOUGH_REQUESTS on.

    The bounds are those of `minimum_detectable` for outcomes that vary as much as possible (s = 1/2).
    """
    if count >= ENOUGH_REQUESTS:
        return None
    largest = 0.5 + DETECTABLE_Z * 0.5 / np.sqrt(max(count, 1))
    if count < MIN_REQUESTS:
        shown = f"With fewer than {MIN_REQUESTS}, eval cannot show a difference, whatever the interval is."
    elif largest >= 1:
        shown = "An interval over so few may miss any difference, even if the tuned model wins every time."
    else:
        shown = f"An interval over so few may miss win rates between {1 - largest:.0%} and {largest:.0%}."
    return f"{shown} Give more prompts or raise requests.test_share, for at least {ENOUGH_REQUESTS} requests."


def expected_maximum(values: np.ndarray, n: float) -> float:
    """Return the expected maximum of n values drawn without replacement from [m] values, 1 <= n <= m.

    For integer n, this is  sum_i x_(i) C(i-1, n-1) / C(m, n)  over the order statistics x_(i), else interpolated.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    m, whole = len(ordered), int(np.floor(n))
    weight = np.array([comb(i, whole - 1) / comb(m, whole) for i in range(m)])
    at = float(ordered @ weight)
    return at if n == whole else at + (n - whole) * (expected_maximum(ordered, whole + 1) - at)


def enough(base: Sequence[np.ndarray]) -> tuple[int, list[int]]:
    """Return m, the most common array length (the smallest on a tie), and the indices of arrays with >= m values."""
    lengths, often = np.unique([len(values) for values in base], return_counts=True)
    m = int(lengths[np.argmax(often)])
    return m, [i for i, values in enumerate(base) if len(values) >= m]


def best_of_n(base: Sequence[np.ndarray], tuned: np.ndarray) -> float | str | None:
    """Return the N for which the best of N base samples, averaged over requests, is as good as the tuned mean.

    base: R arrays of base scores (higher is better); tuned: [R] mean tuned scores of the same requests. m is the
    most common number of base samples per request. Only requests with at least m samples count (see `enough`). Each
    contributes the expected best of N of all its samples, so that a request with unusually few or many samples does not
    decide the result. Returns a number in 1..m, "< 1" if tuned is below the base mean, ">= m" if it is above the best
    of m, and None without requests.
    """
    if not len(base):
        return None
    m, full = enough(base)
    target = float(np.mean([tuned[i] for i in full]))
    curve = [float(np.mean([expected_maximum(base[i], n) for i in full])) for n in range(1, m + 1)]
    slack = 1e-12 * max(1.0, abs(target))
    if target < curve[0] - slack:
        return "< 1"
    if target <= curve[0] + slack:
        return 1.0
    if target > curve[-1] + slack:
        return f">= {m}"
    return float(np.interp(target, curve, np.arange(1, m + 1)))


def verdict(
    ci_low: float | None, ci_high: float | None, n_requests: int, moved: float | None, seed_distance: float | None
) -> str:
    """Return "nothing changed", "better", "worse" or "no difference shown", by the first rule that applies:

    nothing changed: at equal seeds, tuned and base images differ by less than 5 % of the distance between
        two seeds of the base (or not at all).
    no difference shown: there are fewer than 6 requests. Their bootstrap interval would be
        too narrow, and no sign test could reach 5 %.
    better / worse: the 95 % interval of the win rate is entirely above / below 1/2.
    no difference shown: otherwise.
    """
    if moved is not None and (moved == 0 or (seed_distance is not None and moved < UNCHANGED * seed_distance)):
        return "nothing changed"
    if n_requests < MIN_REQUESTS or ci_low is None or ci_high is None:
        return "no difference shown"
    if ci_low > 0.5:
        return "better"
    return "worse" if ci_high < 0.5 else "no difference shown"
