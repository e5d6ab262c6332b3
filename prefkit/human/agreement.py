"""What people's votes say: how far annotators agree, and how far every scorer agrees with them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from prefkit.human import agreement_data
from prefkit.human.agreement_statistics import (
    Estimate,
    krippendorff_alpha,
    leave_one_out,
    majority,
    mean_of_groups,
    raw_agreement,
    share,
    verdict_counts,
)

if TYPE_CHECKING:
    import pandas as pd

    from prefkit.store import Store

#: with fewer requests a bootstrap interval is too narrow to be believed
FEW = 6


def assess(store: Store) -> dict[str, Any] | None:
    """JSON-able; None without votes. Estimates are {value, low, high (95 %), n, groups}.

    votes, annotators, pairs, ties (share); agreement, alpha (bootstrap over pairs), consistency (same verdict on a pair
    shown again), left (share of clear votes for the left picture); human {votes, majority}; scorers {alias: {votes, majority,
    unscored, even, sentence}} (bootstrap over requests); evaluations [{eval, set, models, win_rate of the second, ties}].
    """
    import pandas as pd

    every = agreement_data.verdicts(store, people=True)
    if every.empty:
        return None
    folders = agreement_data.evaluations(store)
    about = agreement_data.candidates(store, folders)
    requests = about.drop_duplicates("id").set_index("id").request_id
    votes = every[every.showing == 0].reset_index(drop=True)
    units, keys = pd.factorize(pd.MultiIndex.from_frame(votes[["first", "second"]]))
    said = votes.verdict.to_numpy(np.int64)
    counts = verdict_counts(units, said)
    pairs = pd.DataFrame(keys.tolist(), columns=["first", "second"])
    # a pair of candidates that the run does not hold is a group of its own
    named = pairs["first"].map(requests).fillna("pair of " + pairs["first"])
    groups = pd.factorize(named)[0]
    shared = counts.sum(axis=1) >= 2
    again = every[every.showing <= 1].groupby(["judge", "first", "second"]).verdict.agg(["size", "nunique"])
    again = again[again["size"] == 2].reset_index()
    left = every.left.notna() & (every.verdict != 0)
    return {
        "votes": len(votes),
        "annotators": int(votes.judge.nunique()),
        "pairs": len(pairs),
        "pairs_of_several": int(shared.sum()),
        "ties": float((said == 0).mean()),
        "agreement": asdict(raw_agreement(counts)),
        "alpha": asdict(krippendorff_alpha(counts)),
        "consistency": _by_pair((again["nunique"] == 1).to_numpy(np.float64), again),
        "left": _by_pair(every[left].left.to_numpy(np.float64), every[left]),
        "human": _human(units, said, counts, groups),
        "scorers": _scorers(store, folders, pairs, counts, groups),
        "evaluations": _evaluations(votes, about),
    }


def _by_pair(values: np.ndarray, frame: pd.DataFrame) -> dict[str, Any]:
    return asdict(share(values, frame.groupby(["first", "second"]).ngroup().to_numpy()))


def _codes(groups: np.ndarray) -> np.ndarray:
    """Codes 0..G-1, each occurring."""
    return np.unique(groups, return_inverse=True)[1]


def _human(units: np.ndarray, said: np.ndarray, counts: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """What no scorer can much exceed: an annotator against the others, measured as scorers are."""
    found = {}
    for name, values in zip(("votes", "majority"), leave_one_out(units, said, counts)):
        kept = np.isfinite(values)
        found[name] = asdict(share(values[kept], _codes(groups[units[kept]])))
    return found


def _scorers(
    store: Store, folders: dict[Any, Store], pairs: pd.DataFrame, counts: np.ndarray, groups: np.ndarray
) -> dict[str, Any]:
    found = {}
    for alias, values in agreement_data.scores(store, folders).items():
        first, second = (values.reindex(pairs[side]).to_numpy(np.float64) for side in ("first", "second"))
        scored = np.isfinite(first) & np.isfinite(second)
        gap = np.sign(np.where(scored, first, 0) - np.where(scored, second, 0))
        found[alias] = against_votes(alias, gap, scored, counts, groups)
    judged = agreement_data.verdicts(store, people=False)
    for judge, frame in judged.groupby("judge"):
        alias = str(judge)
        mean = frame.groupby(["first", "second"]).verdict.mean()
        gap = mean.reindex(list(pairs.itertuples(index=False, name=None))).to_numpy(np.float64)
        found[alias] = against_votes(alias, np.sign(np.nan_to_num(gap)), np.isfinite(gap), counts, groups)
    return {alias: row for alias, row in found.items() if row["votes"]["value"] is not None}


def against_votes(
    alias: str, gap: np.ndarray, scored: np.ndarray, counts: np.ndarray, groups: np.ndarray
) -> dict[str, Any]:
    """[U] sign of the scorer's gap, [U] whether both sides have a score, [U, 3] votes, [U] request codes.

    Every clear vote counts the same; a gap of exactly 0 counts 1/2. People's ties are left out. Against the majority every
    pair counts the same; pairs without a majority are left out.
    """
    clear = counts[:, 0] + counts[:, 2]
    used = scored & (clear > 0)
    right = np.where(gap == 0, 0.5 * clear, np.where(gap > 0, counts[:, 2], counts[:, 0]))
    votes = np.repeat(right[used] / clear[used], clear[used].astype(int))
    single = (
        share(votes, np.repeat(_codes(groups[used]), clear[used].astype(int))) if used.any() else share(votes, groups)
    )
    lead = majority(counts)
    led = scored & (lead != 0)
    most = share(np.where(gap[led] == 0, 0.5, gap[led] == lead[led]), _codes(groups[led]))
    return {
        "votes": asdict(single),
        "majority": asdict(most),
        "unscored": int(((clear > 0) & ~scored).sum()),
        "even": int((used & (gap == 0)).sum()),
        "sentence": sentence(alias, single),
    }


def sentence(alias: str, found: Estimate) -> str:
    """ "pickscore agrees with your users 61 ± 2 %"; the number behind ± is half the 95 % interval."""
    if found.value is None or found.low is None or found.high is None:
        return f"{alias} has no scores on the pairs that people voted on."
    if found.groups < FEW:
        return f"{alias} agrees with your users {found.value:.0%} of the time, on too few requests ({found.groups}) to say how surely."
    return f"{alias} agrees with your users {100 * found.value:.0f} ± {max(1, round(50 * (found.high - found.low)))} %"


def _evaluations(votes: pd.DataFrame, about: pd.DataFrame) -> list[dict[str, Any]]:
    """Votes on two models of one evaluation at the same request and index: how often the second model wins."""
    placed = about[about["eval"] != ""]
    both = votes.merge(placed.add_suffix("_1"), left_on="first", right_on="id_1")
    both = both.merge(placed.add_suffix("_2"), left_on="second", right_on="id_2")
    same = both.model_1 != both.model_2
    for key in ("eval", "set", "request_id", "index"):
        same &= both[f"{key}_1"] == both[f"{key}_2"]
    both = both[same].copy()
    # the base is the one that others are measured against; of two trained models, the first by name
    turned = (both.model_2 == "base") | ((both.model_1 != "base") & (both.model_1 > both.model_2))
    both["won"] = np.where(both.verdict == 0, 0.5, (both.verdict > 0) == turned)
    both["against"] = np.where(turned, both.model_2, both.model_1)
    both["model"] = np.where(turned, both.model_1, both.model_2)
    rows = []
    for (name, set_name, against, model), frame in both.groupby(["eval_1", "set_1", "against", "model"]):
        rate = mean_of_groups(frame.won.to_numpy(np.float64), frame.groupby("request_id_1").ngroup().to_numpy())
        row = {
            "eval": name,
            "set": set_name,
            "against": against,
            "model": model,
            "annotators": int(frame.judge.nunique()),
        }
        rows.append({**row, "win_rate": asdict(rate), "ties": float((frame.verdict == 0).mean())})
    return rows
