"""Compare the score tables of two models, without files or models. The result is one row of result.json."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from prefkit.errors import StoreError
from prefkit.evaluate import statistics

if TYPE_CHECKING:
    import pandas as pd

EMPTY = dict.fromkeys(
    [
        "base",
        "tuned",
        "base_interval",
        "tuned_interval",
        "win_rate",
        "ci_low",
        "ci_high",
        "tie_share",
        "minimum_detectable",
        "best_of_n",
    ],
    None,
)


def compare(
    base: pd.DataFrame,
    tuned: pd.DataFrame,
    *,
    tie: float = 0.0,
    higher_is_better: bool = True,
    samples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare the base's and a tuned model's score tables. Columns: request_id, index (the seed's number) and value.

    A pair is a base score and a tuned score with the same request and index, both finite. Requests without a pair are
    left out and counted in `requests_left_out`. `base` and `tuned` are means over requests of each request's mean over
    its pairs, in the scorer's own units and direction; `base_interval` and `tuned_interval` are 95 % bootstrap
    intervals [low, high] for them. In all other numbers, higher is better. Base scores without a tuned partner are used
    only in `best_of_n`. There, a request's tuned mean is the mean of all its base scores plus the mean gain of its
    pairs, so that comparing the base with itself gives N = 1. `best_of_requests` counts the requests behind
    `best_of_n`. Raises StoreError if a request and index occur twice in a table.
    """
    wanted = tuned.request_id.nunique()
    left, right = (_finite(frame) for frame in (base, tuned))
    both = _paired(left, right)
    if both.empty:
        return EMPTY | {"n_requests": 0, "n_pairs": 0, "requests_left_out": wanted, "best_of_requests": 0}
    codes, names = both.request_id.factorize()
    sign = 1.0 if higher_is_better else -1.0
    a, b = sign * both.value_base.to_numpy(np.float64), sign * both.value_tuned.to_numpy(np.float64)
    outcome = statistics.paired_outcomes(a, b, tie)
    wins = statistics.request_means(outcome, codes)
    low, high = statistics.bootstrap_interval(wins, samples, seed)
    groups = dict(tuple(left.groupby("request_id").value))
    drawn = [sign * groups[name].to_numpy(np.float64) for name in names]
    gain = statistics.request_means(b - a, codes)
    base_means, tuned_means = (sign * statistics.request_means(values, codes) for values in (a, b))
    return {
        "base": float(base_means.mean()),
        "tuned": float(tuned_means.mean()),
        "base_interval": list(statistics.bootstrap_interval(base_means, samples, seed)),
        "tuned_interval": list(statistics.bootstrap_interval(tuned_means, samples, seed)),
        "win_rate": float(wins.mean()),
        "ci_low": low,
        "ci_high": high,
        "tie_share": float(statistics.request_means(outcome == 0.5, codes).mean()),
        "minimum_detectable": statistics.minimum_detectable(wins),
        "best_of_n": statistics.best_of_n(drawn, np.array([values.mean() for values in drawn]) + gain),
        "best_of_requests": len(statistics.enough(drawn)[1]),
        "n_requests": len(names),
        "n_pairs": len(both),
        "requests_left_out": wanted - len(names),
    }


def _paired(left: pd.DataFrame, right: pd.DataFrame) -> pd.DataFrame:
    from pandas.errors import MergeError

    keys = ["request_id", "index"]
    try:
        both = left.merge(right, on=keys, suffixes=("_base", "_tuned"), validate="one_to_one")
    except MergeError as error:
        raise StoreError(
            "a request of this evaluation has two candidates with the same index: the prompt of its request_id changed "
            "since an earlier evaluation. Remove the evaluation's folder (eval/NAME), or rename the evaluation in "
            "the recipe."
        ) from error
    return both.sort_values(keys)


def correlations(columns: dict[str, pd.Series]) -> dict[str, dict[str, float | None]]:
    """Return {scorer: {scorer: Spearman's rank correlation}} over the images that both have scored; None if undefined.

    columns: scorer -> scores by candidate id, negated where lower is better, so that higher is always better.
    """
    import pandas as pd

    table = pd.DataFrame(columns).corr(method="spearman")
    return {a: {b: finite(table.loc[a, b]) for b in table.columns} for a in table.index}


def finite(value: Any) -> float | None:
    """Return the value, or None for NaN and infinity, which JSON cannot represent."""
    return float(value) if value is not None and np.isfinite(value) else None


def _finite(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.loc[np.isfinite(frame.value.to_numpy(np.float64, na_value=np.nan)), ["request_id", "index", "value"]]
