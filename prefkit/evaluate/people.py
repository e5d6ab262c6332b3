"""People as a judge: each model's win rate over the base, from votes on their images of equal request and seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from prefkit.evaluate import statistics
from prefkit.evaluate.compare import EMPTY

if TYPE_CHECKING:
    import pandas as pd

    from prefkit.store import Store

#: name of this judge in results and in eval.NAME.scorers
PEOPLE = "people"


def read_votes(store: Store) -> pd.DataFrame:
    """Return people's first votes on each pair, with the columns first, second, verdict and judge of `verdicts`."""
    from prefkit.human.agreement_data import verdicts

    frame = verdicts(store, people=True)
    return frame[frame.showing == 0][["first", "second", "verdict", "judge"]]


def compare_votes(
    votes: pd.DataFrame, base: pd.DataFrame, tuned: pd.DataFrame, samples: int = 2000, seed: int = 0
) -> dict[str, Any] | None:
    """Compare two models by votes; return a row like that of `compare`, without scores, or None without votes.

    votes: see `read_votes`. base, tuned: their candidates, with request_id, index and id. A vote counts if it compares a
    base with a tuned image of the same request and index. The win rate is the mean over requests of the mean over votes;
    ties count half. The interval is a bootstrap over requests.
    """
    pairs = base.merge(tuned, on=["request_id", "index"], suffixes=("_base", "_tuned"))
    pairs = pairs[pairs.id_base != pairs.id_tuned]
    sides = pairs.assign(
        first=pairs[["id_base", "id_tuned"]].min(axis=1), second=pairs[["id_base", "id_tuned"]].max(axis=1)
    )
    both = votes.merge(sides, on=["first", "second"])
    if both.empty:
        return None
    sign = np.where(both["first"] == both.id_tuned, 1, -1)
    outcome = (1 + sign * both.verdict.to_numpy(np.float64)) / 2
    codes, names = both.request_id.factorize(sort=True)
    wins = statistics.request_means(outcome, codes)
    low, high = statistics.bootstrap_interval(wins, samples, seed)
    return EMPTY | {
        "win_rate": float(wins.mean()),
        "ci_low": low,
        "ci_high": high,
        "tie_share": float(statistics.request_means(outcome == 0.5, codes).mean()),
        "minimum_detectable": statistics.minimum_detectable(wins),
        "n_requests": len(names),
        "n_pairs": len(both[["first", "second"]].drop_duplicates()),
        "requests_left_out": tuned.request_id.nunique() - len(names),
        "best_of_requests": len(names),
        "votes": len(both),
        "annotators": int(both.judge.nunique()),
    }
