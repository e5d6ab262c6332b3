"""Bradley-Terry standings against the conditions of their optimum, and their limits."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from prefkit.human.standings import PRIOR, standings


def games(rows):
    return pd.DataFrame(rows, columns=["request_id", "a", "b", "won"])


def drawn(strength, requests=60, seed=0):
    """Each two models meet once on every request, and the first wins with the probability of their strengths."""
    rng = np.random.default_rng(seed)
    names = list(strength)
    return games(
        [
            (str(request), a, b, float(rng.random() < 1 / (1 + np.exp(strength[b] - strength[a]))))
            for request in range(requests)
            for i, a in enumerate(names)
            for b in names[i + 1 :]
        ]
    )


def by_model(found):
    return {row["model"]: row for row in found["models"]}


def test_strengths_meet_the_condition_of_the_optimum_and_find_those_that_drew_the_games():
    """For each model: points won - expected points = prior * (strength - mean strength)."""
    true = {"base": 0.0, "dpo": 1.5, "nft": -0.8}
    table = drawn(true, requests=400)
    found = standings(table)
    assert [row["model"] for row in found["models"]] == ["dpo", "base", "nft"]
    rows = by_model(found)
    assert rows["base"]["strength"] == 0 == rows["base"]["low"] == rows["base"]["high"]
    mean = np.mean([row["strength"] for row in rows.values()])
    for name, row in rows.items():
        excess = 0.0
        for _, a, b, won in table.itertuples(index=False):
            if name in (a, b):
                points, other = (won, b) if name == a else (1 - won, a)
                excess += points - 1 / (1 + np.exp(rows[other]["strength"] - row["strength"]))
        assert excess == pytest.approx(PRIOR * (row["strength"] - mean), abs=1e-6)
        if name != "base":
            assert row["low"] < true[name] < row["high"] and row["high"] - row["low"] < 1
    assert found["games"] == 1200 and found["requests"] == 400 and found["ties"] == 0
    assert rows["dpo"]["games"] == 800


def test_turned_results_turn_the_strengths_and_sides_do_not_matter():
    table = drawn({"base": 0.0, "a": 1.0, "b": 0.3})
    plain = by_model(standings(table))
    turned = by_model(standings(table.assign(won=1 - table.won)))
    swapped = by_model(standings(games(list(zip(table.request_id, table.b, table.a, 1 - table.won)))))
    for name in plain:
        assert turned[name]["strength"] == pytest.approx(-plain[name]["strength"])
        assert swapped[name] == pytest.approx(plain[name])


def test_a_request_counts_once_and_ties_are_half_a_win():
    """Nine games of one request weigh as much as one of another; only ties give equal strengths; no games, no standings."""
    table = games([("r", "base", "a", 1.0)] * 9 + [("s", "base", "a", 0.0)])
    found = by_model(standings(table))
    assert found["a"]["strength"] == pytest.approx(0) and found["a"]["points"] == 0.5 and found["a"]["games"] == 10
    tied = standings(games([(str(i), "base", "a", 0.5) for i in range(8)]))
    assert tied["ties"] == 1 and all(row["strength"] == row["low"] == row["high"] == 0 for row in tied["models"])
    assert standings(games([])) is None


def test_a_model_that_always_wins_has_a_finite_strength():
    found = by_model(standings(games([(str(i), "a", "b", 1.0) for i in range(40)])))
    strength = found["a"]["strength"]
    assert 40 / (1 + np.exp(2 * strength)) == pytest.approx(PRIOR * strength) and strength > 1
    assert found["b"]["strength"] == pytest.approx(-strength)
