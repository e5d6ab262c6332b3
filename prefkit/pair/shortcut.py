"""Shortcuts: the accuracy with which simple features (file size, brightness, seed, ...) predict the winner."""

from __future__ import annotations

from typing import Any

import numpy as np

FOLDS, ROUNDS, RIDGE = 5, 2000, 1.0


def shortcuts(features: dict[str, np.ndarray], win: np.ndarray, lose: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """Measure how well features predict the winner, and return name -> {accuracy, low, high, warn}.

    features: name -> [N] or [N, D]; win, lose [P]: indices into N; groups [P]: the request of each pair.

    Each feature alone, and all features together (`all`), are tested with a logistic regression without intercept on
    the difference winner - loser, fitted on four fifths of the requests and evaluated on the remaining fifth, five
    times. A prediction without a preference counts 1/2. low, high: percentile bootstrap over requests, 95 % jointly for
    all features (Bonferroni); with 95 % for each feature, three of ten clean pair sets got a warning. warn: low is
    above 1/2. The result for fewer than ten requests is {}.
    """
    codes = np.unique(groups, return_inverse=True)[1]
    if not len(codes) or codes.max() + 1 < 2 * FOLDS:
        return {}
    fold = np.random.default_rng(0).permutation(codes.max() + 1) % FOLDS
    differences = {name: _difference(values, win, lose) for name, values in features.items()}
    if len(differences) > 1:
        differences["all"] = np.concatenate(list(differences.values()), axis=1)
    count = np.bincount(codes).astype(float)
    rows = {}
    for name, x in differences.items():
        right = cross_validated(x, fold[codes])
        low, high = bootstrap_ratio(np.bincount(codes, right), count, ROUNDS, 0.05 / len(differences))
        rows[name] = {"accuracy": float(right.mean()), "low": low, "high": high, "warn": low > 0.5}
    return rows


def _difference(values: np.ndarray, win: np.ndarray, lose: np.ndarray) -> np.ndarray:
    values = values.reshape(len(values), -1).astype(np.float64)
    x = values[win] - values[lose]
    scale = np.sqrt((x**2).mean(axis=0))
    return x / np.where(scale > 0, scale, 1.0)


def cross_validated(x: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Score the held-out prediction of each pair, [P]: 1 if correct, 1/2 if undecided, 0 if wrong.

    x [P, D]: features of the winner minus those of the loser; fold [P]: the fold in which a pair is held out.
    """
    right = np.full(len(x), 0.5)
    for number in np.unique(fold):
        held = fold == number
        if held.all():
            continue
        logit = x[held] @ fit_logistic(x[~held])
        right[held] = np.where(np.abs(logit) < 1e-12, 0.5, logit > 0)
    return right


def fit_logistic(x: np.ndarray, steps: int = 25) -> np.ndarray:
    """Return w [D] that minimises sum log(1 + exp(-x w)) + RIDGE / 2 |w|^2, by Newton's method with bounded steps."""
    weights = np.zeros(x.shape[1])
    for _ in range(steps):
        chance = 0.5 - 0.5 * np.tanh(x @ weights / 2)  # of the loser
        gradient = x.T @ chance - RIDGE * weights
        hessian = (x * (chance * (1 - chance))[:, None]).T @ x + RIDGE * np.eye(x.shape[1])
        step = np.linalg.solve(hessian, gradient)
        weights = weights + step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-8:
            break
    return weights


def bootstrap_ratio(total: np.ndarray, count: np.ndarray, rounds: int, level: float = 0.05) -> tuple[float, float]:
    """Return the 1 - level bootstrap interval of sum(total) / sum(count), resampling the entries of both together."""
    rng, size = np.random.default_rng(0), len(total)
    if not size or not count.sum():
        return float("nan"), float("nan")
    means = []
    for _ in range(rounds):
        drawn = rng.integers(0, size, size)
        below = count[drawn].sum()
        if below:
            means.append(total[drawn].sum() / below)
    low, high = np.quantile(means, [level / 2, 1 - level / 2])
    return float(low), float(high)
