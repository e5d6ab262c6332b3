from __future__ import annotations

import numpy as np
import pytest

from prefkit.train.online.advantages import AdvantageStatistics, count_flat_groups

TWO = ["a", "a", "b", "b"]


def test_two_groups_of_two_by_hand():
    rewards = [1.0, 3.0, 10.0, 10.0]
    whole = np.std(rewards)
    found = {
        kind: AdvantageStatistics(kind).advantages(TWO, rewards) for kind in ("global", "group", "grouped", "running")
    }
    assert found["group"] == pytest.approx([-1 / 1.0001, 1 / 1.0001, 0, 0])
    assert found["grouped"] == pytest.approx([-1 / (whole + 1e-4), 1 / (whole + 1e-4), 0, 0])
    assert found["global"] == pytest.approx([(r - 6) / whole for r in rewards], rel=1e-6)
    assert found["running"] == pytest.approx([(r - 6) / (whole + 1e-6) for r in rewards])  # too few seen


def test_running_statistics_take_the_new_rewards_in_first():
    kept = AdvantageStatistics("running", buffer=3, minimum=3)
    kept.advantages(["a", "a"], [0.0, 2.0])
    found = kept.advantages(["a", "b"], [4.0, 7.0])
    seen = np.array([0.0, 2.0, 4.0])
    assert found[0] == pytest.approx((4 - seen.mean()) / (seen.std() + 1e-6))
    assert found[1] == pytest.approx((7 - 5.5) / (1.5 + 1e-6))
    later = AdvantageStatistics("running", buffer=3, minimum=3)
    later.load(kept.state())
    assert later.advantages(["a"], [9.0]) == pytest.approx(kept.advantages(["a"], [9.0]))
    assert list(kept.history["a"]) == [2.0, 4.0, 9.0]


def test_integer_rewards_are_not_truncated():
    whole = AdvantageStatistics("group").advantages(["a"] * 3, np.array([1, 2, 2], dtype=np.int64))
    assert whole.dtype == np.float64
    assert whole == pytest.approx(AdvantageStatistics("group").advantages(["a"] * 3, [1.0, 2.0, 2.0]))
    assert len(set(np.abs(whole))) == 2


def test_a_missing_reward_is_left_out_of_its_group():
    found = AdvantageStatistics("group").advantages(["a"] * 3 + ["b"], [1.0, np.nan, 3.0, np.nan])
    assert found[[0, 2]] == pytest.approx([-1 / 1.0001, 1 / 1.0001])
    assert np.isnan(found[[1, 3]]).all()


def test_groups_that_teach_nothing_are_counted():
    assert count_flat_groups(TWO, [1, 1, 2, 3]) == 1
    assert count_flat_groups(TWO, [np.nan, np.nan, 2, np.nan]) == 2
