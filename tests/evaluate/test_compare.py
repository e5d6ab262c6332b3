"""Assembly of one result row from frames of scores."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from prefkit.errors import StoreError
from prefkit.evaluate.compare import compare, correlations


def frame(rows: list[tuple[str, int, float]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["request_id", "index", "value"])


def grid(values: np.ndarray) -> pd.DataFrame:
    return frame([(f"r{i}", j, float(v)) for i, row in enumerate(values) for j, v in enumerate(row)])


def test_by_hand():
    base = frame([("a", 0, 1.0), ("a", 1, 2.0), ("b", 0, 0.0), ("b", 1, 4.0)])
    tuned = frame([("a", 0, 2.0), ("a", 1, 2.0), ("b", 0, -1.0), ("b", 1, 3.0)])
    row = compare(base, tuned)
    assert row["win_rate"] == pytest.approx((0.75 + 0.0) / 2)
    assert row["tie_share"] == pytest.approx(0.25)
    assert row["base"] == pytest.approx((1.5 + 2.0) / 2)
    assert row["tuned"] == pytest.approx((2.0 + 1.0) / 2)
    assert (row["n_requests"], row["n_pairs"], row["requests_left_out"]) == (2, 4, 0)
    assert row["best_of_n"] == "< 1"


def test_swap_mirrors_the_win_rate_and_its_interval():
    rng = np.random.default_rng(0)
    base, tuned = grid(rng.normal(size=(30, 4))), grid(rng.normal(0.3, 1, size=(30, 4)))
    there, back = compare(base, tuned), compare(tuned, base)
    assert there["win_rate"] == pytest.approx(1 - back["win_rate"])
    assert there["ci_low"] == pytest.approx(1 - back["ci_high"], abs=1e-9)
    assert there["ci_low"] < there["win_rate"] < there["ci_high"]


def test_lower_is_better_turns_everything_but_the_means():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(30, 4)), rng.normal(0.2, 1, size=(30, 4))
    up, down = compare(grid(a), grid(b)), compare(grid(-a), grid(-b), higher_is_better=False)
    assert down["base"] == pytest.approx(-up["base"]) and down["tuned"] == pytest.approx(-up["tuned"])
    for key in ("win_rate", "ci_low", "ci_high", "tie_share", "best_of_n", "minimum_detectable"):
        assert down[key] == pytest.approx(up[key]), key


def test_row_order_does_not_matter():
    rng = np.random.default_rng(2)
    base, tuned = grid(rng.normal(size=(20, 3))), grid(rng.normal(size=(20, 3)))
    assert compare(base, tuned) == compare(base.sample(frac=1, random_state=0), tuned.sample(frac=1, random_state=1))


def test_missing_scores_leave_pairs_and_whole_requests_out():
    base = frame([("a", 0, 1.0), ("a", 1, np.nan), ("b", 0, np.nan), ("c", 0, 1.0)])
    tuned = frame([("a", 0, 2.0), ("a", 1, 9.0), ("b", 0, 9.0), ("c", 0, np.inf)])
    row = compare(base, tuned)
    assert (row["n_requests"], row["n_pairs"], row["requests_left_out"]) == (1, 1, 2)
    assert row["tuned"] == 2.0 and row["win_rate"] == 1.0


def test_nothing_to_compare_is_null_and_never_zero():
    row = compare(frame([("a", 0, np.nan)]), frame([("a", 0, 1.0)]))
    assert row["n_requests"] == 0 and row["requests_left_out"] == 1
    assert all(row[key] is None for key in ("base", "tuned", "win_rate", "ci_low", "ci_high", "best_of_n"))


def test_further_base_images_count_for_best_of_only():
    rng = np.random.default_rng(3)
    base = rng.normal(size=(40, 16))
    tuned = base[:, :4] + 1.5
    few, many = compare(grid(base[:, :4]), grid(tuned)), compare(grid(base), grid(tuned))
    assert few["win_rate"] == many["win_rate"] and few["base"] == many["base"]
    assert few["best_of_n"] == ">= 4"
    assert 4 < many["best_of_n"] < 16


def test_best_of_rests_on_the_commonest_number_of_images_and_says_on_how_many_requests():
    base = np.random.default_rng(6).normal(size=(30, 4))
    tuned = grid(base + 0.5)
    whole = compare(grid(base), tuned)
    assert whole["best_of_requests"] == 30
    more = frame([("r0", j, -3.0) for j in range(4, 16)])  # left by a larger evaluation, of one request only
    row = compare(pd.concat([grid(base), more]), tuned)
    assert row["best_of_requests"] == 30 and 1 < row["best_of_n"] < 4
    holes = base.copy()
    holes[1:, 3] = np.nan  # 29 requests lack one score: best of at most 3, of all 30
    row = compare(grid(holes), tuned)
    assert row["best_of_requests"] == 30 and 1 < row["best_of_n"] < 3
    holes = base.copy()
    holes[:10, 3] = np.nan
    assert compare(grid(holes), tuned)["best_of_requests"] == 20


def test_two_images_of_one_request_and_index_are_refused():
    rows = grid(np.ones((3, 2)))
    with pytest.raises(StoreError, match="two candidates with the same index"):
        compare(pd.concat([rows, rows]), rows)


def test_base_against_itself_is_best_of_one_however_many_were_drawn():
    base = np.random.default_rng(5).normal(size=(30, 8))
    row = compare(grid(base), grid(base[:, :3]))
    assert row["best_of_n"] == pytest.approx(1.0, abs=1e-9) and row["tie_share"] == 1.0


def test_correlation_against_scipy_with_gaps():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(4)
    a = pd.Series(rng.integers(0, 9, 60).astype(float))
    b = a + rng.normal(size=60)
    b[5] = np.nan
    found = correlations({"a": a, "b": b, "flat": pd.Series(np.ones(60))})
    kept = b.notna()
    assert found["a"]["b"] == pytest.approx(spearmanr(a[kept], b[kept]).statistic)
    assert found["a"]["flat"] is None
