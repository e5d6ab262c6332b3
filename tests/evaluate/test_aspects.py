"""Means and differences of aspects, against counting by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from prefkit.evaluate.aspects import compare_aspects


def table(values, requests, **more):
    return pd.DataFrame({"request_id": requests, "index": range(len(values)), "bg": values, **more})


def test_two_seeds_differ_as_often_as_pairs_of_them_do():
    rng = np.random.default_rng(0)
    groups = {name: rng.integers(0, 3, size).astype(float) for name, size in (("a", 5), ("b", 2), ("c", 7))}
    rows = table([v for values in groups.values() for v in values], [n for n, v in groups.items() for _ in v])
    found = compare_aspects(rows, rows)["bg"]
    pairs = [np.mean([x != y for x, y in itertools.combinations(v, 2)]) for v in groups.values()]
    assert found["differ_base"] == found["differ_tuned"] == pytest.approx(np.mean(pairs))
    assert found["base"] == pytest.approx(np.mean([v.mean() for v in groups.values()]))


def test_collapse_is_seen_and_gaps_are_left_out():
    base = table([1, 2, np.nan, 1, 2], ["a", "a", "a", "b", "b"])
    tuned = table([1, 1, 1, 1, np.nan], ["a", "a", "a", "b", "b"])
    found = compare_aspects(base, tuned)["bg"]
    assert (found["differ_base"], found["differ_tuned"]) == (1.0, 0.0)  # b has one tuned value: no pair of seeds


def test_an_aspect_of_one_side_only_is_no_comparison():
    assert set(compare_aspects(table([1.0], ["a"], hue=[1.0]), table([1.0], ["a"]))) == {"bg"}
