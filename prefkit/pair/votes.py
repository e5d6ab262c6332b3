"""Pairwise verdicts of a run -> pairs with a soft label: the share of votes, or Bradley-Terry."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from prefkit.errors import UsageError
from prefkit.pair.pool import Pool
from prefkit.store import Store


def verdicts(store: Store, tables: Sequence[str], aspect: str) -> pd.DataFrame:
    """One row per judge and unordered pair: a < b (ids), judge, share: that a is better (a tie is 1/2).

    A judge who saw both orders has one vote, the mean. Failed verdicts are left out.
    """
    there = store.names("comparisons")
    unknown = [name for name in tables if name not in there]
    if unknown or not there:
        raise UsageError(
            f"pair: no comparisons called {', '.join(unknown) or '(any)'}; there are {', '.join(there) or 'none'}. "
            "`prefkit import` brings votes in."
        )
    frames = [store.comparisons(name).frame().assign(table=name) for name in tables or there]
    frame = pd.concat(frames, ignore_index=True)
    frame = frame[
        frame.outcome.isin(["a", "b", "tie"]) & (frame.aspect.fillna("") == aspect) & (frame.id_a != frame.id_b)
    ]
    share = frame.outcome.map({"a": 1.0, "b": 0.0, "tie": 0.5}).astype(float)
    share = frame.probability.astype(float).where(frame.probability.notna(), share)
    swap = (frame.id_a > frame.id_b).to_numpy()
    frame = pd.DataFrame(
        {
            "a": np.where(swap, frame.id_b, frame.id_a),
            "b": np.where(swap, frame.id_a, frame.id_b),
            "judge": frame.table + "/" + frame.judge.fillna(""),
            "share": np.where(swap, 1 - share, share),
        }
    )
    return frame.groupby(["a", "b", "judge"])["share"].mean().reset_index()


def compared_pairs(pool: Pool, votes: pd.DataFrame, bradley_terry: bool, prior: float, least: int) -> pd.DataFrame:
    """win, lose (places in the pool), score_gap, rank_gap, p, agreement, conflict, by, votes; one row per compared pair.

    Share of votes: p is the winner's share, the gap 2 p - 1. Bradley-Terry: the gap is the difference of strengths
    fitted per request, p its logistic. agreement: share of the judges that name the winner.
    """
    places = pd.Series(np.arange(len(pool)), index=pool.ids.take(pool.frame.row.to_numpy()).to_pylist())
    votes = votes.assign(i=votes.a.map(places), j=votes.b.map(places)).dropna(subset=["i", "j"])
    votes = votes.astype({"i": int, "j": int})
    request = pool.frame.request.to_numpy()
    votes = votes[request[votes.i] == request[votes.j]]
    kind = votes.share.map(lambda s: 1 if s > 0.5 else -1 if s < 0.5 else 0)
    table = votes.assign(up=kind > 0, down=kind < 0).groupby(["i", "j"], as_index=False)
    found = table.agg(share=("share", "mean"), votes=("share", "size"), up=("up", "mean"), down=("down", "mean"))
    found = found[found.votes >= least].sort_values(["i", "j"])
    strength = _strengths(found, request, prior) if bradley_terry else _shares(found, len(pool))
    gap = strength[found.i] - strength[found.j] if bradley_terry else 2 * found.share.to_numpy() - 1
    up = gap >= 0
    win, lose = np.where(up, found.i, found.j), np.where(up, found.j, found.i)
    ranks = _ranks(strength, request, np.r_[win, lose])
    p = 1 / (1 + np.exp(-np.abs(gap))) if bradley_terry else (1 + np.abs(gap)) / 2
    return pd.DataFrame(
        {
            "win": win,
            "lose": lose,
            "score_gap": np.abs(gap),
            "rank_gap": ranks[lose] - ranks[win],
            "p": p,
            "agreement": np.where(up, found.up, found.down),
            "conflict": ((found.up > 0) & (found.down > 0)).to_numpy(),
            "by": -1,
        }
    ).sort_values(["win", "lose"], ignore_index=True)


def _shares(found: pd.DataFrame, size: int) -> np.ndarray:
    """[N]: the share of all its votes that each candidate won."""
    sides, wins = np.r_[found.i, found.j], np.r_[found.share * found.votes, (1 - found.share) * found.votes]
    total = np.bincount(sides, np.r_[found.votes, found.votes], size)
    return np.bincount(sides, wins, size) / np.maximum(total, 1e-12)


def _strengths(found: pd.DataFrame, request: np.ndarray, prior: float) -> np.ndarray:
    """[N]: Bradley-Terry strengths, fitted request by request."""
    strength = np.zeros(len(request))
    i, j, share, votes = (found[name].to_numpy() for name in ("i", "j", "share", "votes"))
    groups = request[i]  # equal ones side by side, as i is sorted and the pool is by request
    for rows in np.split(np.arange(len(i)), np.flatnonzero(np.diff(groups)) + 1) if len(i) else []:
        members, at = np.unique(np.r_[i[rows], j[rows]], return_inverse=True)
        first, second = at[: len(rows)], at[len(rows) :]
        won = np.zeros((len(members), len(members)))
        won[first, second], won[second, first] = share[rows] * votes[rows], (1 - share[rows]) * votes[rows]
        strength[members] = fit_bradley_terry(won, prior)
    return strength


def _ranks(strength: np.ndarray, request: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Place within the request by strength among those compared, 0 = best."""
    members = np.unique(members)
    ranks = np.zeros(len(strength), np.int32)
    ranks[members] = pd.Series(-strength[members]).groupby(request[members]).rank(method="first").to_numpy() - 1
    return ranks


def fit_bradley_terry(won: np.ndarray, prior: float = 1.0, steps: int = 100) -> np.ndarray:
    """won [N, N]: votes for the row over the column -> strengths [N], mean 0, maximising the log-likelihood.

    P(i beats j) = sigmoid(s_i - s_j) (Bradley and Terry 1952); prior: precision of a normal prior on strengths, which
    keeps an unbeaten one finite. Newton's method, which is exact enough once the step is below 1e-10.
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
