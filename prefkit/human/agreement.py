"""Agreement measured on people's votes: among annotators, and between each scorer and the annotators."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from prefkit.human import agreement_data
from prefkit.human.agreement_statistics import (
    Estimate,
    fraction,
    krippendorff_alpha,
    leave_one_out,
    majority,
    mean_of_groups,
    raw_agreement,
    verdict_counts,
)
from prefkit.human.standings import standings
from prefkit.store import Store

#: with fewer resampled groups (requests or pairs), a bootstrap interval is too narrow
FEW = 6


Gaps = dict[str, tuple[np.ndarray, np.ndarray]]  # scorer -> arguments `gap` and `scored` of `against_votes`
UNKNOWN = "unknown"  # group of the pairs whose request has no text in the column `by`


def assess(store: Store, by: str | None = None) -> dict[str, Any] | None:
    """Return all measures of agreement as a JSON-able dict, or None if nobody has voted.

    Counts: votes, annotators, pairs, pairs_of_several (pairs with at least two votes). Fraction: ties. Estimates with
    a bootstrap over pairs: agreement, alpha, consistency (same verdict on a repeated pair), left (choices of the left
    image, without ties). Estimates with a bootstrap over requests: human {votes, majority} and scorers {alias: result
    of `against_votes`, and for a model judge `orders` {ab, ba}: the agreement of its answers in either order of the
    images}. evaluations: a list of {eval, set, against, model, annotators, ties, win_rate}. standings: {"EVAL, SET":
    result of `standings.standings`} where people compared three or more models. by: a column of the requests; the key `by` then holds {value: {alias: agreement on its pairs}}. Raises UsageError if no request has it.
    """
    if by is not None:
        agreement_data.check_column(store, by)
    verdicts = agreement_data.verdicts(store, people=True)
    if verdicts.empty:
        return None
    folders = agreement_data.evaluations(store)
    candidates = agreement_data.candidates(store, folders)
    requests = candidates.drop_duplicates("id").set_index("id").request_id
    votes = verdicts[verdicts.showing == 0].reset_index(drop=True)
    units, keys = pd.factorize(pd.MultiIndex.from_frame(votes[["first", "second"]]))
    values = votes.verdict.to_numpy(np.int64)
    counts = verdict_counts(units, values)
    pairs = pd.DataFrame(keys.tolist(), columns=["first", "second"])
    # a pair's group is its request, or its first candidate if the run does not hold that candidate
    groups = pd.factorize(pairs["first"].map(requests).fillna("pair of " + pairs["first"]))[0]
    several = counts.sum(axis=1) >= 2
    gaps = _gaps(store, folders, pairs)
    scorers = {alias: against_votes(alias, *gap, counts, groups) for alias, gap in gaps.items()}
    for judge, orders in _orders(store, pairs).items():
        scorers[judge]["orders"] = {o: against_votes(judge, *gap, counts, groups)["votes"] for o, gap in orders.items()}
    again = verdicts[verdicts.showing <= 1].groupby(["judge", "first", "second"]).verdict.agg(["size", "nunique"])
    again = again[again["size"] == 2].reset_index()
    sided = verdicts[verdicts.left.notna() & (verdicts.verdict != 0)]
    return {
        "votes": len(votes),
        "annotators": int(votes.judge.nunique()),
        "pairs": len(pairs),
        "pairs_of_several": int(several.sum()),
        "ties": float((values == 0).mean()),
        "agreement": asdict(raw_agreement(counts)),
        "alpha": asdict(krippendorff_alpha(counts)),
        "consistency": _by_pair((again["nunique"] == 1).to_numpy(np.float64), again),
        "left": _by_pair(sided.left.to_numpy(np.float64), sided),
        "human": _human(units, values, counts, groups),
        "scorers": {alias: row for alias, row in scorers.items() if row["votes"]["value"] is not None},
        "evaluations": _evaluations(votes, candidates),
        "standings": _standings(votes, candidates),
    } | ({} if by is None else {"by": _grouped(gaps, counts, groups, _labels(store, pairs["first"].map(requests), by))})


def _by_pair(values: np.ndarray, frame: pd.DataFrame) -> dict[str, Any]:
    return asdict(fraction(values, frame.groupby(["first", "second"]).ngroup().to_numpy()))


def _human(units: np.ndarray, verdicts: np.ndarray, counts: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """Return how well one annotator agrees with the others, measured as for scorers: an upper limit for scorers."""
    estimates = {}
    for name, values in zip(("votes", "majority"), leave_one_out(units, verdicts, counts)):
        known = np.isfinite(values)
        estimates[name] = asdict(fraction(values[known], groups[units[known]]))
    return estimates


def _gaps(store: Store, folders: dict[Any, Store], pairs: pd.DataFrame) -> Gaps:
    found = {}
    for alias, values in agreement_data.scores(store, folders).items():
        first, second = (values.reindex(pairs[side]).to_numpy(np.float64) for side in ("first", "second"))
        scored = np.isfinite(first) & np.isfinite(second)
        found[alias] = np.sign(np.where(scored, first, 0) - np.where(scored, second, 0)), scored
    for judge, frame in agreement_data.verdicts(store, people=False).groupby("judge"):
        found[str(judge)] = _gap(frame, pairs)
    return found


def _gap(verdicts: pd.DataFrame, pairs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return the sign of a judge's mean verdict on each pair, and whether it has any."""
    mean = verdicts.groupby(["first", "second"]).verdict.mean()
    gap = mean.reindex(list(pairs.itertuples(index=False, name=None))).to_numpy(np.float64)
    return np.sign(np.nan_to_num(gap)), np.isfinite(gap)


def _orders(store: Store, pairs: pd.DataFrame) -> dict[str, Gaps]:
    """Return judge -> {ab, ba: its answers with the images in this order}, for judges that were asked in both orders."""
    result: dict[str, Gaps] = {}
    for judge, frame in agreement_data.verdicts(store, people=False).groupby("judge"):
        parts = {order: frame[frame.order == order] for order in ("ab", "ba")}
        if all(map(len, parts.values())):
            result[str(judge)] = {order: _gap(part, pairs) for order, part in parts.items()}
    return result


def _labels(store: Store, requests: pd.Series, by: str) -> np.ndarray:
    texts = {r.request_id: r.extra.get(by) for r in store.requests()}
    return np.array([str(texts.get(request) or UNKNOWN) for request in requests])


def _grouped(gaps: Gaps, counts: np.ndarray, groups: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return {label: {alias: agreement with single votes on the pairs with this label}}. labels: [U]."""
    return {
        label: {
            alias: against_votes(alias, gap[own], scored[own], counts[own], groups[own])["votes"]
            for alias, (gap, scored) in gaps.items()
        }
        for label in sorted(set(labels.tolist()))
        for own in [labels == label]
    }


def against_votes(
    alias: str, gap: np.ndarray, scored: np.ndarray, counts: np.ndarray, groups: np.ndarray
) -> dict[str, Any]:
    """Measure the agreement of a scorer with the votes on U pairs.

    gap [U]: sign of the first candidate's score minus the second's; scored [U] bool: both candidates have a score;
    counts [U, 3]: see `verdict_counts`; groups [U]: codes of the requests. In the result, `votes` gives all votes the
    same weight and leaves out ties; `majority` gives all pairs the same weight and leaves out pairs without a majority.
    A gap of 0 counts as half an agreement.
    """
    clear = counts[:, 0] + counts[:, 2]
    used = scored & (clear > 0)
    right = np.where(gap == 0, 0.5 * clear, np.where(gap > 0, counts[:, 2], counts[:, 0]))
    repeats = clear[used].astype(int)
    single = fraction(np.repeat(right[used] / clear[used], repeats), np.repeat(groups[used], repeats))
    lead = majority(counts)
    led = scored & (lead != 0)
    most = fraction(np.where(gap[led] == 0, 0.5, gap[led] == lead[led]), groups[led])
    return {
        "votes": asdict(single),
        "majority": asdict(most),
        "unscored": int(((clear > 0) & ~scored).sum()),
        "even": int((used & (gap == 0)).sum()),
        "sentence": sentence(alias, single),
    }


def sentence(alias: str, estimate: Estimate) -> str:
    """Return a sentence such as "pickscore agrees with your users 61 ± 2 %"; ± is half the width of the interval."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return f"{alias} has no scores on the pairs that people voted on."
    if estimate.groups < FEW:
        return f"{alias} agrees with your users {estimate.value:.0%} of the time; too few requests ({estimate.groups}) for an interval."
    half = max(1, round(50 * (estimate.high - estimate.low)))
    return f"{alias} agrees with your users {100 * estimate.value:.0f} ± {half} %"


def _between_models(votes: pd.DataFrame, candidates: pd.DataFrame) -> pd.DataFrame:
    """Return the votes on images of two models of the same evaluation, request and index, with both images' columns."""
    candidates = candidates[candidates["eval"] != ""]
    both = votes.merge(candidates.add_suffix("_1"), left_on="first", right_on="id_1")
    both = both.merge(candidates.add_suffix("_2"), left_on="second", right_on="id_2")
    same = both.model_1 != both.model_2
    for key in ("eval", "set", "request_id", "index"):
        same &= both[f"{key}_1"] == both[f"{key}_2"]
    return both[same].copy()


def _standings(votes: pd.DataFrame, candidates: pd.DataFrame) -> dict[str, Any]:
    """Return {"EVAL, SET": standings} of the evaluations in which people compared three or more models."""
    found = {}
    for (name, set_name), frame in _between_models(votes, candidates).groupby(["eval_1", "set_1"]):
        games = pd.DataFrame({"request_id": frame.request_id_1, "a": frame.model_1, "b": frame.model_2})
        games["won"] = frame.verdict / 2 + 0.5
        if len({*games.a, *games.b}) > 2:
            found[f"{name}, {set_name}"] = standings(games)
    return found


def _evaluations(votes: pd.DataFrame, candidates: pd.DataFrame) -> list[dict[str, Any]]:
    """Return win rates between two models, from votes on their images of the same evaluation, request and index."""
    both = _between_models(votes, candidates)
    # win rates are measured against the base; between two trained models, against the first by name
    turned = (both.model_2 == "base") | ((both.model_1 != "base") & (both.model_1 > both.model_2))
    both["won"] = np.where(both.verdict == 0, 0.5, (both.verdict > 0) == turned)
    both["against"] = np.where(turned, both.model_2, both.model_1)
    both["model"] = np.where(turned, both.model_1, both.model_2)
    rows = []
    for (name, set_name, against, model), frame in both.groupby(["eval_1", "set_1", "against", "model"]):
        rate = mean_of_groups(frame.won.to_numpy(np.float64), frame.groupby("request_id_1").ngroup().to_numpy())
        models = {"eval": name, "set": set_name, "against": against, "model": model}
        numbers = {"annotators": int(frame.judge.nunique()), "ties": float((frame.verdict == 0).mean())}
        rows.append({**models, **numbers, "win_rate": asdict(rate)})
    return rows
