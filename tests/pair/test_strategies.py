from __future__ import annotations

import numpy as np
import pytest

from prefkit.config import plugin_options

NAN = float("nan")


def pairs(name, value, **options):
    strategy = plugin_options.make("strategy", name, options)
    value = np.array(value)
    return strategy.pairs(value, value[:, None])


def test_best_against_worst():
    assert pairs("topk_bottomk", [1.0, 3.0, 2.0]) == [(1, 0, 2.0)]


def test_matched_by_rank():
    assert pairs("topk_bottomk", [1.0, 4.0, 2.0, 3.0], k=2) == [(1, 0, 3.0), (3, 2, 1.0)]


def test_missing_scores_are_passed_over_and_small_requests_give_what_they_can():
    assert pairs("topk_bottomk", [1.0, NAN, 2.0, NAN], k=2) == [(2, 0, 1.0)]
    assert pairs("topk_bottomk", [NAN, 1.0]) == []


def test_margin_takes_the_widest_first():
    assert pairs("margin", [0.0, 3.0, 1.0], min_gap=1.5, max_pairs=9) == [(1, 0, 3.0), (1, 2, 2.0)]
    assert pairs("margin", [0.0, 3.0, 1.0], min_gap=0.0, max_pairs=1) == [(1, 0, 3.0)]
    assert pairs("margin", [1.0, 1.0], min_gap=0.0) == []


@pytest.mark.parametrize("name", ["topk_bottomk", "margin"])
def test_winner_is_never_worse_and_order_does_not_matter(name):
    rng = np.random.default_rng(1)
    for _ in range(50):
        value = rng.normal(size=6)
        order = rng.permutation(6)
        one = {(w, loser) for w, loser, gap in pairs(name, value) if gap == value[w] - value[loser] > 0}
        two = {(int(order[w]), int(order[loser])) for w, loser, _ in pairs(name, value[order])}
        assert one == two and len(one) == len(pairs(name, value))
