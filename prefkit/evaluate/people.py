"""People as a judge: win rates over the base and games of the arena, from votes on images of equal request and seed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
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
    both = _votes_between(votes, base, tuned)
    if both.empty:
        return None
    outcome = 1 - both.won.to_numpy(np.float64)
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


def games(votes: pd.DataFrame, images: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the votes between each pair of models as games [request_id, a, b, won]; each person's vote is a game.

    votes: see `read_votes`. images: model -> its candidates, with request_id, index and id.
    """
    import pandas as pd

    parts = [pd.DataFrame(columns=["request_id", "a", "b", "won"])]
    for a, b in itertools.combinations(images, 2):
        both = _votes_between(votes, images[a], images[b])
        parts.append(pd.DataFrame({"request_id": both.request_id, "a": a, "b": b, "won": both.won}))
    return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)


def _votes_between(votes: pd.DataFrame, one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Return the votes that compare images of two models at equal request and index, with request_id and won.

    won: 1 if the image of `one` is better, 0.5 for a tie, 0 if that of `other` is.
    """
    pairs = one.merge(other, on=["request_id", "index"], suffixes=("_one", "_other"))
    pairs = pairs[pairs.id_one != pairs.id_other]
    sides = pairs.assign(
        first=pairs[["id_one", "id_other"]].min(axis=1), second=pairs[["id_one", "id_other"]].max(axis=1)
    )
    both = votes.merge(sides, on=["first", "second"])
    sign = np.where(both["first"] == both.id_one, 1, -1)
    return both.assign(won=(1 + sign * both.verdict.to_numpy(np.float64)) / 2)
