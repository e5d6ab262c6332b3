"""Statistics against closed forms, brute force and scipy."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from prefkit.evaluate import statistics as s


def test_outcomes_count_ties_as_half():
    assert s.paired_outcomes(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 1.0])).tolist() == [1.0, 0.5, 0.0]
    assert s.paired_outcomes(np.array([1.0, 1.0]), np.array([1.1, 1.3]), tie=0.2).tolist() == [0.5, 1.0]


def test_swapping_base_and_tuned_mirrors_the_outcome():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    assert np.array_equal(s.paired_outcomes(a, b), 1 - s.paired_outcomes(b, a))


def test_request_means_weigh_requests_and_not_seeds():
    means = s.request_means(np.array([1.0, 0.0, 0.0, 0.0]), np.array([0, 1, 1, 1]))
    assert means.tolist() == [1.0, 0.0]


def test_bootstrap_is_seeded_and_matches_the_normal_interval():
    values = np.random.default_rng(1).normal(0.6, 0.2, 2000)
    low, high = s.bootstrap_interval(values, 4000, seed=3)
    assert (low, high) == s.bootstrap_interval(values, 4000, seed=3)
    assert (low, high) != s.bootstrap_interval(values, 4000, seed=4)
    half = 1.959964 * values.std(ddof=1) / np.sqrt(2000)
    assert low == pytest.approx(values.mean() - half, abs=0.001)
    assert high == pytest.approx(values.mean() + half, abs=0.001)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    covered = 0
    for i in range(400):
        low, high = s.bootstrap_interval(rng.choice([0.0, 0.5, 1.0], 80, p=[0.3, 0.2, 0.5]), 400, seed=i)
        covered += low <= 0.6 <= high
    assert 0.91 <= covered / 400 <= 0.98


def test_bootstrap_of_many_requests_in_blocks_is_one_stream():
    values = np.arange(7000, dtype=float)
    low, high = s.bootstrap_interval(values, 600, seed=0)
    half = 1.959964 * values.std() / np.sqrt(7000)
    assert low == pytest.approx(values.mean() - half, rel=0.01)
    assert high == pytest.approx(values.mean() + half, rel=0.01)


def test_detectable_effect_is_found_four_times_in_five():
    rng = np.random.default_rng(5)
    sd, n = 0.3, 60
    effect = s.DETECTABLE_Z * sd / np.sqrt(n)
    shots = rng.normal(0.5 + effect, sd, (20_000, n))
    z = (shots.mean(axis=1) - 0.5) / (sd / np.sqrt(n))
    assert np.mean(np.abs(z) > 1.959964) == pytest.approx(0.8, abs=0.01)
    assert pytest.approx(stats.norm.ppf(0.975) + stats.norm.ppf(0.8), abs=1e-6) == s.DETECTABLE_Z
    values = rng.normal(0.5, sd, n)
    assert s.minimum_detectable(values) == pytest.approx(s.DETECTABLE_Z * values.std(ddof=1) / np.sqrt(n))


def test_detectable_effect_needs_a_deviation():
    assert s.minimum_detectable(np.array([0.7])) is None
    assert s.minimum_detectable(np.ones(50)) is None


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_expected_maximum_against_all_subsets(n: int):
    values = np.array([0.3, -1.0, 2.0, 2.0, 0.9, 5.0])
    brute = np.mean([max(subset) for subset in combinations(values, n)])
    assert s.expected_maximum(values, n) == pytest.approx(brute, rel=1e-12)


def test_expected_maximum_between_whole_numbers_is_linear():
    values = np.random.default_rng(0).normal(size=8)
    a, b = s.expected_maximum(values, 3), s.expected_maximum(values, 4)
    assert s.expected_maximum(values, 3.25) == pytest.approx(0.75 * a + 0.25 * b)


def test_best_of_n_inverts_the_expected_maximum():
    rng = np.random.default_rng(3)
    base = [rng.normal(size=8) for _ in range(20)]
    for n in (1.0, 2.0, 3.4, 8.0):
        tuned = np.array([s.expected_maximum(values, n) for values in base])
        assert s.best_of_n(base, tuned) == pytest.approx(n)
    assert s.best_of_n(base, np.array([values.max() + 1 for values in base])) == ">= 8"
    assert s.best_of_n(base, np.array([values.mean() - 1 for values in base])) == "< 1"


def test_best_of_n_of_equal_scores_and_of_short_requests():
    assert s.best_of_n([np.ones(4), np.ones(4)], np.ones(2)) == 1.0
    assert s.best_of_n([np.ones(4)], np.array([1.5])) == ">= 4"
    assert s.best_of_n([], np.array([])) is None
    full = [np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 2.0])]
    assert s.best_of_n([*full, np.array([9.0])], np.array([1.0, 1.0, 0.0])) == 1.0


def test_verdict_rules():
    assert s.verdict(0.6, 0.8, 50, 0.2, 0.3) == "better"
    assert s.verdict(0.2, 0.4, 50, 0.2, 0.3) == "worse"
    assert s.verdict(0.45, 0.8, 50, 0.2, 0.3) == "no difference shown"
    assert s.verdict(0.5, 0.8, 50, 0.2, 0.3) == "no difference shown"
    assert s.verdict(0.6, 0.8, 50, 0.014, 0.3) == "nothing changed"
    assert s.verdict(0.6, 0.8, 50, 0.0, None) == "nothing changed"
    assert s.verdict(1.0, 1.0, 5, 0.2, 0.3) == "no difference shown"
    assert s.verdict(None, None, 0, None, None) == "no difference shown"
