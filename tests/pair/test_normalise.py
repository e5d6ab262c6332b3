from __future__ import annotations

import math

import numpy as np
import pytest

from prefkit.config import Pair, Recipe, compatibility
from prefkit.errors import UsageError
from prefkit.pair.normalise import combine, normalise

NAN = float("nan")


def reference(values, groups):
    """Centred per request, divided by the pooled deviation, written out in plain Python."""
    squares, degrees, centred = 0.0, 0, [float("nan")] * len(values)
    for g in set(groups):
        members = [i for i in range(len(values)) if groups[i] == g and values[i] == values[i]]
        if not members:
            continue
        mean = sum(values[i] for i in members) / len(members)
        for i in members:
            centred[i] = values[i] - mean
            squares += centred[i] ** 2
        degrees += len(members) - 1
    return np.array(centred) / (squares / degrees) ** 0.5


def test_centred_is_what_the_design_says():
    rng = np.random.default_rng(0)
    values, groups = rng.normal(size=40), np.repeat(np.arange(8), 5)
    values[[3, 17]] = np.nan
    np.testing.assert_allclose(normalise(values, groups, "centred"), reference(values, groups), rtol=1e-12)


def test_a_request_of_noise_stays_small_under_the_pooled_scale_only():
    values = np.array([0.0, 1.0, 5.0, 5.0 + 1e-6])
    groups = np.array([0, 0, 1, 1])
    pooled, own = normalise(values, groups, "centred"), normalise(values, groups, "zscore")
    assert abs(pooled[3] - pooled[2]) < 1e-5
    assert abs(own[3] - own[2]) > 1


@pytest.mark.parametrize("how", ["centred", "zscore"])
def test_equal_scores_give_zero_not_nan(how):
    assert (normalise(np.full(6, 0.1), np.repeat([0, 1], 3), how) == 0).all()


def test_direction_weights_and_missing():
    """A missing score leaves the others' weights; none leaves nothing. A negative weight turns its score round."""
    columns = {"a": np.array([1.0, 2, 3, 4, NAN]), "b": np.array([4.0, NAN, 2, 1, NAN])}
    value, scores = combine(columns, {"a": -1.0, "b": 1.0}, {"a": 1.0, "b": -0.5}, np.zeros(5, int), "none")
    np.testing.assert_allclose(value, np.array([-3.0, -3.0, -4.0, -4.5, NAN]) / [1.5, 1.5, 1.5, 1.5, 1.0])
    np.testing.assert_array_equal(scores[:, 1], [-4.0, NAN, -2, -1, NAN])


def test_only_the_proportions_of_the_weights_matter():
    rng = np.random.default_rng(2)
    columns, signs, groups = {"a": rng.normal(size=8), "b": rng.normal(size=8)}, {"a": 1.0, "b": 1.0}, np.arange(8) // 4
    values = [combine(columns, signs, {"a": s, "b": -3 * s}, groups, "centred")[0] for s in (1.0, 0.03, 40.0)]
    np.testing.assert_allclose(values[1], values[0], rtol=1e-12)
    np.testing.assert_allclose(values[2], values[0], rtol=1e-12)


def written_out(how, v):
    """One request without missing scores, from the definitions."""
    n = len(v)
    if how == "minmax":
        return [(x - min(v)) / (max(v) - min(v)) if max(v) > min(v) else 0.0 for x in v]
    if how == "rank":
        below = [(sum(y < x for y in v) + (sum(y == x for y in v) - 1) / 2) / (n - 1) for x in v]
        return below if len(set(v)) > 1 else [0.0] * n
    if how == "softmax":
        return [math.exp(x - max(v)) / sum(math.exp(y - max(v)) for y in v) for x in v]
    return [sum(1 / (1 + math.exp(y - x)) for j, y in enumerate(v) if j != i) / (n - 1) for i, x in enumerate(v)]


@pytest.mark.parametrize("how", ["minmax", "rank", "softmax", "winrate"])
def test_other_normalisations_are_their_definitions(how):
    rng = np.random.default_rng(1)
    groups = np.r_[np.repeat(np.arange(5), 4), np.repeat(np.arange(5, 8), 6), [9, 9, 9]]
    values = np.r_[rng.normal(size=38).round(1), [2.0, 2.0, 2.0]]
    values[[1, 30]] = NAN
    shuffled = rng.permutation(len(values))
    found = np.empty(len(values))
    found[shuffled] = normalise(values[shuffled], groups[shuffled], how)
    for g in np.unique(groups):
        rows = np.flatnonzero((groups == g) & ~np.isnan(values))
        np.testing.assert_allclose(found[rows], written_out(how, values[rows].tolist()), rtol=1e-12, atol=1e-15)
    assert np.isnan(found[[1, 30]]).all()


def test_global_scope_counts_all_candidates_as_one_request():
    values, groups = np.array([0.0, 1.0, 5.0, 10.0]), np.array([0, 0, 1, 1])
    np.testing.assert_allclose(normalise(values, groups, "minmax", "global"), values / 10)
    np.testing.assert_allclose(normalise(values, groups, "minmax"), [0, 1, 0, 1])
    with pytest.raises(UsageError, match="scope is global, but winrate compares candidates of one request"):
        compatibility.check("pair", "main", Recipe(), Pair(normalise="winrate", scope="global"))


def test_unknown_normalisation():
    with pytest.raises(UsageError, match="normalise 'pooled' is unknown"):
        normalise(np.ones(2), np.zeros(2, int), "pooled")


def test_scores_that_cancel_are_equal_to_zeros():
    columns = {name: np.array([value, 0.0]) for name, value in (("a", 0.1), ("b", 0.2), ("c", -0.3))}
    value, _ = combine(columns, dict.fromkeys(columns, 1.0), dict.fromkeys(columns, 1), np.zeros(2, int), "none")
    assert value[0] == value[1] == 0.0


def test_equal_means_of_different_scores_are_equal():
    """Also if the largest scores differ, from which the size of rounding errors follows."""
    rng = np.random.default_rng(0)
    one, two = rng.integers(0, 1000, (2, 500)) / 1000
    other = rng.integers(0, 1000, 500) / 1000
    columns = {"a": np.r_[one, other], "b": np.r_[two, np.round(one + two - other, 3)]}
    value, _ = combine(columns, {"a": 1.0, "b": 1.0}, {"a": 1, "b": 1}, np.zeros(1000, int), "none")
    assert (value[:500] == value[500:]).all() and len(np.unique(value)) > 400
