"""Rewards through the scorers' own code: weights, missing ones, and scorers that never answer."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from prefkit.train.online.rewards import Beside, rewards

GROUPS = np.array([0, 0, 1, 1])


def test_rewards_are_weighted_sums_with_signs():
    columns = {"good": np.array([1.0, 2, 3, 4]), "bad": np.array([1.0, 0, 0, 5])}
    found = rewards(columns, {"good": 1, "bad": -1}, {"good": 2.0, "bad": 0.5}, GROUPS, "none")
    assert found == pytest.approx([1.5, 4, 6, 5.5])


def test_each_reward_can_be_normalised_over_the_round_before_it_is_weighted():
    columns = {"a": np.array([1.0, 2, 3, 4]), "b": np.array([0.0, 0, 0, 1000])}
    found = rewards(columns, {"a": 1, "b": 1}, {"a": 1.0, "b": 1.0}, GROUPS, "batch")
    z = [(v - v.mean()) / v.std(ddof=1) for v in columns.values()]
    assert found == pytest.approx(z[0] + z[1])


def test_a_missing_score_makes_the_reward_missing_never_zero():
    columns = {"a": np.array([1.0, np.nan, 3, 4]), "b": np.ones(4)}
    found = rewards(columns, {"a": 1, "b": 1}, {"a": 1.0, "b": 1.0}, GROUPS, "none")
    assert np.isnan(found).tolist() == [False, True, False, False]


def test_a_job_that_never_ends_is_given_up_and_the_others_go_on():
    beside, never = Beside(), threading.Event()
    jobs = [beside.submit(lambda: 1), beside.submit(never.wait), beside.submit(lambda: 3)]
    assert [beside.result(job, 0.3) for job in jobs] == [1, None, 3]
    assert beside.result(beside.submit(lambda: 4), 5) == 4
    never.set()
    with pytest.raises(ZeroDivisionError):
        beside.result(beside.submit(lambda: 1 / 0), 5)
    beside.close()
