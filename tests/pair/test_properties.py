"""What every strategy promises, on drawn scores; topk_bottomk and the block form against definitions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkit.config import Pair, plugin_options
from prefkit.pair.block import ScoreTable, blocks
from prefkit.pair.choose import choose_by
from prefkit.pair.pool import Pool

BY_VALUE = ["topk_bottomk", "margin", "all_pairs", "threshold_all", "pareto", "consensus"]
NAMES = [*BY_VALUE, "per_scorer"]
CAPS = {"topk_bottomk": "k", "per_scorer": "k"}
quick = settings(max_examples=40, deadline=None, derandomize=True)
few = settings(quick, max_examples=15)


@st.composite
def tables(draw, distinct=False, least=2):
    """scores [N, S], some missing unless distinct; value is their mean over those there."""
    n, s = draw(st.integers(least, 7)), draw(st.integers(2, 3))
    if distinct:
        cells = [draw(st.permutations(range(n))) for _ in range(s)]
        scores = np.array(cells, float).T + np.linspace(0, 0.1, n)[:, None]
    else:
        cell = st.one_of(st.integers(-2, 2).map(float), st.just(float("nan")))
        scores = np.array(draw(st.lists(st.lists(cell, min_size=s, max_size=s), min_size=n, max_size=n)))
    there = ~np.isnan(scores)
    value = np.where(there.any(1), np.nansum(scores, 1) / np.maximum(there.sum(1), 1), np.nan)
    return value, scores


def fitted(name, value, scores, cap=3, ties=0.0):
    options = {CAPS.get(name, "max_pairs"): cap} | ({"m": 2} if name == "consensus" else {})
    strategy = plugin_options.make("strategy", name, options)
    if hasattr(strategy, "fit") and not np.isnan(value).all():
        strategy.fit(ScoreTable(value, scores, np.full(scores.shape[1], ties)))
    return strategy


def pairs(name, value, scores, **options):
    if np.isnan(value).all():
        return []
    return fitted(name, value, scores, **options).pairs(value, scores)


@pytest.mark.parametrize("name", NAMES)
@quick
@given(tables())
def test_winners_are_better_by_the_declared_rule(name, table):
    value, scores = table
    found = pairs(name, value, scores)
    for w, x, gap in found:
        assert w != x and gap >= 0
        difference = scores[w] - scores[x]
        if name in BY_VALUE:
            assert gap == value[w] - value[x]
            assert gap > 0 or name == "topk_bottomk"  # a gap of 0 is within every tie threshold
        if name == "per_scorer":
            assert gap > 0 and np.isclose(difference, gap).any()
        if name == "pareto":
            assert (difference >= 0).all() and (difference > 0).any()
        if name == "consensus":
            assert (difference > 0).sum() >= 2
        if name == "margin":
            assert gap >= 1.0
        if name == "threshold_all":
            assert value[w] >= np.nanmedian(value) > value[x]
    unordered = [frozenset(pair[:2]) for pair in found]
    assert len(unordered) == len(set(unordered))
    assert len(found) <= 3 * (scores.shape[1] if name == "per_scorer" else 1)


@pytest.mark.parametrize("name", NAMES)
@quick
@given(st.integers(2, 7), st.integers(0, 10**6))
def test_the_order_of_candidates_does_not_matter(name, count, seed):
    """Normal numbers: no two gaps are equal."""
    rng = np.random.default_rng(seed)
    scores, order = rng.normal(size=(count, 3)), rng.permutation(count)
    value = scores.mean(axis=1)
    one = {(w, x) for w, x, _ in pairs(name, value, scores)}
    assert one == {(order[w], order[x]) for w, x, _ in pairs(name, value[order], scores[order])}


@pytest.mark.parametrize("name", ["topk_bottomk", "per_scorer"])
@quick
@given(tables(distinct=True))
def test_rank_based_strategies_see_ranks_alone(name, table):
    value, scores = table
    value = value + np.arange(len(value)) * 1e-3
    one = {(w, x) for w, x, _ in pairs(name, value, scores)}
    assert one == {(w, x) for w, x, _ in pairs(name, np.exp(value), np.exp(scores / 3))}


@pytest.mark.parametrize("name", NAMES)
def test_one_candidate_or_all_equal_gives_none(name):
    assert pairs(name, np.array([1.0]), np.array([[1.0, 1.0]])) == []
    equal = np.ones(5)
    assert all(gap == 0 for *_, gap in pairs(name, equal, np.ones((5, 2))))
    table = {"a": np.ones(5), "b": np.ones(5)}
    ones, strategy = dict.fromkeys(table, 1.0), fitted(name, equal, np.ones((5, 2)))
    found = choose_by(Pair(tie=0.0), strategy, table, ones, ones, np.zeros(5, int))
    assert found.pairs.empty


@quick
@given(tables(), st.integers(1, 4))
def test_topk_bottomk_is_its_definition(table, k):
    value, scores = table
    there = [i for i in range(len(value)) if value[i] == value[i]]
    expected, left = [], list(there)
    for _ in range(min(k, len(there) // 2)):
        best = next(i for i in left if all(value[i] >= value[j] for j in left))
        worst = next(i for i in reversed(left) if all(value[i] <= value[j] for j in left))
        expected.append((best, worst, value[best] - value[worst]))
        left = [i for i in left if i not in (best, worst)]
    assert pairs("topk_bottomk", value, scores, cap=k) == expected


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_agree(name):
    """Many requests of several sizes at once, and each by itself."""
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(40), rng.integers(1, 8, 40))
    scores = rng.normal(size=(len(groups), 3)).round(1)
    value = scores.mean(axis=1)
    strategy = fitted(name, value, scores, ties=0.1)
    for members in blocks(groups):
        if members.shape[1] < 2:
            continue
        found = strategy.block(value[members], scores[members])
        for row, rows in enumerate(members):
            mine = found.row == row
            together = list(zip(found.win[mine].tolist(), found.lose[mine].tolist(), found.gap[mine].tolist()))
            assert together == strategy.pairs(value[rows], scores[rows])
    assert sum(m.size for m in blocks(groups)) == len(groups)


def test_scorers_that_contradict_each_other_give_no_pair():
    scores = np.array([[0.0, 2.0], [1.0, 1.0], [2.0, 0.0]])
    assert pairs("per_scorer", scores.mean(1), scores, cap=1) == []
    scores[:, 1] = [0.0, 2.5, 1.0]
    assert sorted(pairs("per_scorer", scores.mean(1), scores, cap=1)) == [(1, 0, 2.5), (2, 0, 2.0)]


def test_a_spread_keeps_the_widest_and_the_narrowest():
    value = np.array([0.0, 1.0, 3.0, 7.0, 15.0])
    gaps = [gap for *_, gap in pairs("all_pairs", value, value[:, None], cap=3)]
    assert gaps[0] == 15.0 and gaps[-1] == 1.0 and len(gaps) == 3


def fashiondpo(raw):
    """raw [R, 7, 3] -> pairs, as the published code goes about it: analyse.py and finetune.py, written out."""
    rounded = np.round(raw)
    scaled = [
        (rounded[..., s] - rounded[..., s].min()) / (rounded[..., s].max() - rounded[..., s].min()) for s in range(3)
    ]
    final = (scaled[0] + scaled[1] + scaled[2]) / 3
    good = final >= np.median(final)
    return {(r, i, j) for r in range(len(raw)) for i in range(7) for j in range(7) if good[r, i] and not good[r, j]}


def test_the_fashiondpo_preset_is_the_published_rule():
    from prefkit.pair.run import settled

    raw = np.random.default_rng(5).normal(50, 12, (60, 7, 3))
    strategy = plugin_options.make("strategy", "threshold_all", {"preset": "fashiondpo"})
    config = settled(Pair(use="threshold_all"), strategy, "main")
    columns = {a: raw[..., s].ravel() for s, a in enumerate("abc")}
    ones = dict.fromkeys(columns, 1.0)
    found = choose_by(config, strategy, columns, ones, ones, np.repeat(np.arange(60), 7))
    rows = {(w // 7, w % 7, x % 7) for w, x in zip(found.pairs.win, found.pairs.lose)}
    assert rows == fashiondpo(raw) and len(rows) == len(found.pairs)
    counts = np.bincount(found.pairs.win.to_numpy() // 7, minlength=60)
    assert set(counts) <= {0, 6, 10, 12}


def test_the_fashiondpo_preset_on_whole_numbers_in_exact_arithmetic():
    """Ratings of few levels, so that many means equal the median: float64 alone puts some of them on the wrong side."""
    from prefkit.pair.run import settled

    strategy = plugin_options.make("strategy", "threshold_all", {"preset": "fashiondpo"})
    config = settled(Pair(use="threshold_all"), strategy, "main")
    for seed in range(40):
        rng = np.random.default_rng(seed)
        raw = np.stack([rng.integers(1, 11, 420), rng.integers(20, 37, 420), rng.integers(-8, 5, 420)], 1)
        low, high = raw.min(0).tolist(), raw.max(0).tolist()
        mean = [sum(Fraction(x - a, b - a) for x, a, b in zip(row, low, high)) / 3 for row in raw.tolist()]
        middle = sorted(mean)[209:211]
        good = [2 * value >= sum(middle) for value in mean]
        columns = {a: raw[:, s] + 0.4 * (-1) ** s for s, a in enumerate("abc")}  # rounded away
        ones = dict.fromkeys(columns, 1.0)
        found = choose_by(config, strategy, columns, ones, ones, np.repeat(np.arange(60), 7))
        expected = {(i, j) for i in range(420) for j in range(i // 7 * 7, i // 7 * 7 + 7) if good[i] and not good[j]}
        assert set(zip(found.pairs.win, found.pairs.lose)) == expected, seed


@pytest.mark.parametrize("name", NAMES)
@few
@given(tables(), st.sampled_from(["none", "centred", "zscore", "minmax", "rank"]), st.sampled_from([0.0, 0.3]))
def test_what_becomes_a_pair_is_better_than_the_tie_and_what_is_a_tie_is_not(name, table, how, tie):
    """Two requests, one of equal candidates, through normalisation, tie threshold and cap."""
    scores = np.concatenate([table[1], np.ones((3, table[1].shape[1]))])
    scores = scores[~np.isnan(scores).any(axis=1)]
    groups = np.r_[np.zeros(len(scores) - 3, int), np.ones(3, int)]
    columns = {f"s{i}": scores[:, i] for i in range(scores.shape[1])}
    ones = dict.fromkeys(columns, 1.0)
    strategy = plugin_options.make("strategy", name, {CAPS.get(name, "max_pairs"): 2})
    found = choose_by(Pair(use=name, normalise=how, tie=tie), strategy, columns, ones, ones, groups)
    own = found.value if name != "per_scorer" else None
    for frame, kept in ((found.pairs, True), (found.ties, False)):
        gap = frame.score_gap.to_numpy()
        if own is not None:
            assert np.array_equal(gap, own[frame.win] - own[frame.lose]) and ((gap > tie) == kept).all()
        assert (gap > 0).all() or not kept
        assert (groups[frame.win] == groups[frame.lose]).all() and (frame.win != frame.lose).all()
    assert not (groups[found.pairs.win] == 1).any()
    both = [frozenset(pair) for pair in zip(found.pairs.win, found.pairs.lose)]
    assert len(both) == len(set(both)) <= 2 * (len(columns) if name == "per_scorer" else 1)


@pytest.mark.parametrize("name", NAMES)
@few
@given(st.integers(2, 7), st.integers(0, 10**6))
def test_under_ranks_a_monotone_transformation_of_a_scorer_changes_nothing(name, count, seed):
    columns = dict(zip("ab", np.random.default_rng(seed).normal(size=(2, 2 * count))))
    groups, ones = np.repeat([0, 1], count), dict.fromkeys(columns, 1.0)
    found = []
    for turned in (columns, {"a": np.exp(2 * columns["a"]), "b": columns["b"] ** 3 - 100}):
        strategy = plugin_options.make("strategy", name, {CAPS.get(name, "max_pairs"): 2})
        settings = Pair(use=name, normalise="rank", tie=0.0)
        found.append(choose_by(settings, strategy, turned, ones, ones, groups).pairs)
    assert found[0].equals(found[1])


@few
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.sampled_from(["a", "b", "tie"]), st.integers(0, 3)), max_size=25), st.booleans())  # fmt: skip
def test_votes_prefer_what_more_people_chose_however_they_were_shown(said, bradley_terry):
    from prefkit.pair.votes import compared_pairs

    ids = pa.chunked_array([[f"c{i}" for i in range(6)]])
    pool = Pool(pd.DataFrame({"row": np.arange(6), "request": np.repeat([0, 1], 3)}), ids, ids, pa.table({}), ["own"])
    share = {"a": 1.0, "b": 0.0, "tie": 0.5}
    rows = {(min(a, b), max(a, b), judge): share[o] if a < b else 1 - share[o] for a, b, o, judge in said if a != b}
    votes = pd.DataFrame([(f"c{a}", f"c{b}", str(j), s) for (a, b, j), s in rows.items()], columns=["a", "b", "judge", "fraction"])  # fmt: skip
    found = compared_pairs(pool, votes, bradley_terry, 1.0, 1)
    inside = {(a, b) for a, b, _ in rows if a // 3 == b // 3}
    assert {(min(w, x), max(w, x)) for w, x in zip(found.win, found.lose)} == inside and len(found) == len(inside)
    for row in found.itertuples():
        mine = [s if row.win < row.lose else 1 - s for (a, b, _), s in rows.items() if {a, b} == {row.win, row.lose}]
        assert row.score_gap >= 0 and row.p >= 0.5
        if not bradley_terry:
            assert row.p == pytest.approx(np.mean(mine)) and row.score_gap == pytest.approx(2 * np.mean(mine) - 1)
