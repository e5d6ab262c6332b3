"""Shortcuts: measure how accurately simple features (file size, brightness, seed, ...) predict the winner."""

from __future__ import annotations

from typing import Any

import numpy as np

FOLDS, ROUNDS, RIDGE = 5, 2000, 1.0


def shortcuts(features: dict[str, np.ndarray], win: np.ndarray, lose: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """Measure how well features predict the winner, and return {name: {accuracy, low, high, warn}}.

    features: name -> [N] or [N, D]; win, lose [P]: indices into N; groups [P]: each pair's request.

    Each feature, and all features together (`all`), predict the winner by a logistic regression without intercept on
    the difference winner - loser, in five-fold cross-validation over requests. An undecided prediction counts 1/2.
    low, high: percentile bootstrap over requests, 95 % jointly for all features (Bonferroni). warn: low is above 1/2.
    Returns {} for fewer than ten requests.
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
    """Predict each pair's winner by a fit to the other folds. Returns [P]: 1 = correct, 1/2 = undecided, 0 = wrong.

    x [P, D]: features of the winner minus those of the loser; fold [P]: each pair's fold.
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
    """Return the w [D] that minimises sum log(1 + exp(-x w)) + RIDGE / 2 |w|^2 (Newton's method, bounded steps)."""
    weights = np.zeros(x.shape[1])
    for _ in range(steps):
        chance = 0.5 - 0.5 * np.tanh(x @ weights / 2)  # probability that the loser wins
        gradient = x.T @ chance - RIDGE * weights
        hessian = (x * (chance * (1 - chance))[:, None]).T @ x + RIDGE * np.eye(x.shape[1])
        step = np.linalg.solve(hessian, gradient)
        weights = weights + step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-8:
            break
    return weights


def bootstrap_ratio(total: np.ndarray, count: np.ndarray, rounds: int, level: float = 0.05) -> tuple[float, float]:
    """Return the bootstrap interval of sum(total) / sum(count) at confidence 1 - level, resampling entries jointly."""
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
