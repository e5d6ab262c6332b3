"""Make pairs from pairwise verdicts, with a soft label: the fraction of votes, or the Bradley-Terry win probability."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from prefkit.errors import UsageError
from prefkit.pair.pool import Pool
from prefkit.store import Store


def verdicts(store: Store, tables: Sequence[str], aspect: str) -> pd.DataFrame:
    """Read verdicts: a row per judge and pair, with ids a < b, judge and fraction (1: a is better, 1/2: tie, 0: b).

    If a judge compared a pair several times, the verdicts are averaged. A person is one judge, and a vote counts once, in
    however many tables it is. Failed verdicts are left out. Raises UsageError for a missing table.
    """
    known = store.names("comparisons")
    unknown = [name for name in tables if name not in known]
    if unknown or not known:
        missing = f"comparisons called {', '.join(unknown)}" if unknown else "comparisons"
        choices = f" Choose from {', '.join(known)}." if known else ""
        raise UsageError(
            f"pair: {store.folder} has no {missing}.{choices} Import votes (`prefkit import`) or run `prefkit compare`."
        )
    frame = _read(store, tables or known)
    frame = frame[
        frame.outcome.isin(["a", "b", "tie"]) & (frame.aspect.fillna("") == aspect) & (frame.id_a != frame.id_b)
    ]
    fraction = frame.outcome.map({"a": 1.0, "b": 0.0, "tie": 0.5}).astype(float)
    fraction = frame.probability.astype(float).where(frame.probability.notna(), fraction)
    swap = (frame.id_a > frame.id_b).to_numpy()
    frame = pd.DataFrame(
        {
            "a": np.where(swap, frame.id_b, frame.id_a),
            "b": np.where(swap, frame.id_a, frame.id_b),
            "judge": frame.table + "/" + frame.judge.fillna(""),
            "fraction": np.where(swap, 1 - fraction, fraction),
        }
    )
    return frame.groupby(["a", "b", "judge"])["fraction"].mean().reset_index()


def _read(store: Store, names: Sequence[str]) -> pd.DataFrame:
    """Return the rows of the tables, with the column `table`: for a person, the first table with a vote of theirs."""
    frames = []
    for name in names:
        table = store.comparisons(name)
        frames.append(table.frame().assign(table=name, voted=(table.spec() or {}).get("imported") == "votes"))
    frame = pd.concat(frames, ignore_index=True)
    voted = frame.voted.astype(bool)
    first = frame[voted].groupby("judge").table.first()
    frame["table"] = frame.judge.map(first).where(voted, frame.table)
    return frame[~voted | ~frame.duplicated(["voted", "id"])]


def compared_pairs(pool: Pool, votes: pd.DataFrame, bradley_terry: bool, prior: float, least: int) -> pd.DataFrame:
    """Return one row per compared pair, with the columns contract.COLUMNS; win and lose are indices into the pool.

    If bradley_terry, the gap is the difference of the strengths fitted per request, and p = sigmoid(gap). Otherwise, p
    is the winner's fraction of the votes, and the gap is 2 p - 1. agreement: fraction of judges that prefer the winner.
    least: minimum number of judges per pair.
    """
    index = pd.Series(np.arange(len(pool)), index=pool.ids.take(pool.frame.row.to_numpy()).to_pylist())
    votes = votes.assign(i=votes.a.map(index), j=votes.b.map(index)).dropna(subset=["i", "j"])
    votes = votes.astype({"i": int, "j": int})
    request = pool.frame.request.to_numpy()
    votes = votes[request[votes.i] == request[votes.j]]
    table = votes.assign(up=votes.fraction > 0.5, down=votes.fraction < 0.5).groupby(["i", "j"], as_index=False)
    pairs = table.agg(
        fraction=("fraction", "mean"), votes=("fraction", "size"), up=("up", "mean"), down=("down", "mean")
    )
    pairs = pairs[pairs.votes >= least].sort_values(["i", "j"])
    strength = _strengths(pairs, request, prior) if bradley_terry else _fractions(pairs, len(pool))
    gap = strength[pairs.i] - strength[pairs.j] if bradley_terry else 2 * pairs.fraction.to_numpy() - 1
    up = gap >= 0
    win, lose = np.where(up, pairs.i, pairs.j), np.where(up, pairs.j, pairs.i)
    ranks = _ranks(strength, request, np.r_[win, lose])
    p = 1 / (1 + np.exp(-np.abs(gap))) if bradley_terry else (1 + np.abs(gap)) / 2
    return pd.DataFrame(
        {
            "win": win,
            "lose": lose,
            "score_gap": np.abs(gap),
            "rank_gap": ranks[lose] - ranks[win],
            "p": p,
            "agreement": np.where(up, pairs.up, pairs.down),
            "conflict": ((pairs.up > 0) & (pairs.down > 0)).to_numpy(),
            "by": -1,
        }
    ).sort_values(["win", "lose"], ignore_index=True)


def _fractions(pairs: pd.DataFrame, size: int) -> np.ndarray:
    """Return each candidate's fraction of won votes, [N]."""
    sides, wins = np.r_[pairs.i, pairs.j], np.r_[pairs.fraction * pairs.votes, (1 - pairs.fraction) * pairs.votes]
    total = np.bincount(sides, np.r_[pairs.votes, pairs.votes], size)
    return np.bincount(sides, wins, size) / np.maximum(total, 1e-12)


def _strengths(pairs: pd.DataFrame, request: np.ndarray, prior: float) -> np.ndarray:
    """Return Bradley-Terry strengths [N], fitted separately for each request."""
    strength = np.zeros(len(request))
    i, j, fraction, votes = (pairs[name].to_numpy() for name in ("i", "j", "fraction", "votes"))
    groups = request[i]  # sorted, because i is sorted and the pool is sorted by request
    for rows in np.split(np.arange(len(i)), np.flatnonzero(np.diff(groups)) + 1) if len(i) else []:
        members, at = np.unique(np.r_[i[rows], j[rows]], return_inverse=True)
        first, second = at[: len(rows)], at[len(rows) :]
        won = np.zeros((len(members), len(members)))
        won[first, second], won[second, first] = fraction[rows] * votes[rows], (1 - fraction[rows]) * votes[rows]
        strength[members] = fit_bradley_terry(won, prior)
    return strength


def _ranks(strength: np.ndarray, request: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Return the ranks [N] by strength among the compared candidates (`members`) of each request, 0 = best."""
    members = np.unique(members)
    ranks = np.zeros(len(strength), np.int32)
    ranks[members] = pd.Series(-strength[members]).groupby(request[members]).rank(method="first").to_numpy() - 1
    return ranks


def fit_bradley_terry(won: np.ndarray, prior: float = 1.0, steps: int = 100) -> np.ndarray:
    """Return maximum-a-posteriori strengths [N] with mean 0. won [i, j]: number of votes for i over j.

    P(i beats j) = sigmoid(s_i - s_j) (Bradley and Terry 1952). prior: precision of a normal prior on the strengths,
    which keeps the strength of an unbeaten candidate finite. Newton's method until the step is below 1e-10.
    """
    strength, total = np.zeros(len(won)), won + won.T
    for _ in range(steps):
        chance = 0.5 + 0.5 * np.tanh((strength[:, None] - strength[None, :]) / 2)
        gradient = (won - total * chance).sum(axis=1) - prior * strength
        weight = total * chance * (1 - chance)
        hessian = np.diag(weight.sum(axis=1) + prior) - weight
        step = np.linalg.solve(hessian, gradient)
        strength = strength + step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-10:
            break
    return strength - strength.mean()
