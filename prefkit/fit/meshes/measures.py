"""Measures of how well scores rank the hypotheses of held-out requests, with 95 % bootstrap intervals over requests.

srcc            Spearman's correlation of score and negative error within a request, mean over requests
pair_accuracy   fraction of a request's pairs of hypotheses in which the better one has the higher score; a tie is half
selected        error of the hypothesis with the highest score
random, oracle  mean error of a request's hypotheses, and their smallest error
selection_gain  random - selected
pooled_plcc, pooled_srcc   Pearson and Spearman over all hypotheses of all requests, as HMR-Scorer reports them. They mix
                the difficulty of a picture with the quality of a hypothesis, and say little about ranking in a request.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from prefkit.fit.statistics import estimate, pearson

Rows = dict[str, np.ndarray]


def within(scores: list[np.ndarray], errors: list[np.ndarray]) -> Rows:
    """Return {measure: [R]}, one value per request; srcc and pair_accuracy are NaN for equal errors."""
    rows = [_request(s, e) for s, e in zip(scores, errors)]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _request(scores: np.ndarray, errors: np.ndarray) -> dict[str, float]:
    better = errors[:, None] < errors[None]
    gaps = scores[:, None] - scores[None]
    right = (gaps > 0) + 0.5 * (gaps == 0)
    flat = np.ptp(errors) == 0
    srcc = 0.0 if np.ptp(scores) == 0 else pearson(scores, -errors, ranks=True)
    return {
        "srcc": np.nan if flat or srcc is None else srcc,
        "pair_accuracy": np.nan if flat else float(right[better].mean()),
        "selected": float(errors[scores.argmax()]),
        "random": float(errors.mean()),
        "oracle": float(errors.min()),
    }


def compared(
    scores: list[np.ndarray], rule: list[np.ndarray], errors: list[np.ndarray], measures: tuple[str, ...]
) -> dict[str, Any]:
    """Return the measures of the scores, and of the rule mesh_reprojection under names with `_reprojection`.

    scores, rule: M values per request, higher is better; errors: [M, E] per request. Measures within requests use the
    first of the E errors; for the other errors, only srcc is computed.
    """
    results: dict[str, Any] = {}
    first = [e[:, 0] for e in errors]
    ours, rules = within(scores, first), within(rule, first)
    for name in ("srcc", "pair_accuracy", "selected"):
        results[name], results[f"{name}_reprojection"] = _mean(ours[name]), _mean(rules[name])
        results[f"{name}_difference"] = _mean(ours[name] - rules[name])
    results |= {"random": _mean(ours["random"]), "oracle": _mean(ours["oracle"])}
    results["selection_gain"] = _mean(ours["random"] - ours["selected"])
    results["selection_gain_reprojection"] = _mean(ours["random"] - rules["selected"])
    for k, measure in enumerate(measures):
        values = [e[:, k] for e in errors]
        for suffix, given in (("", scores), ("_reprojection", rule)):
            if k:
                results[f"srcc_{measure}{suffix}"] = _mean(within(given, values)["srcc"])
            results |= {f"{name}_{measure}{suffix}": v for name, v in _pooled(given, values).items()}
    return results


def _mean(values: np.ndarray) -> dict[str, Any]:
    return estimate(values[~np.isnan(values)])


def _pooled(scores: list[np.ndarray], errors: list[np.ndarray]) -> dict[str, Any]:
    x, y = np.concatenate(scores), -np.concatenate(errors)
    return {
        name: {"mean": pearson(x, y, ranks), "n": len(x)}
        for name, ranks in (("pooled_plcc", False), ("pooled_srcc", True))
    }
