"""Plots: what is drawn stands where the numbers say."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest

from prefkit.report import plot
from prefkit.report.html import number, text


@pytest.mark.parametrize(
    "low,high", [(0.0, 1.0), (-3.2, 7.9), (1e-6, 3e-6), (0.0, 123456.0), (0.31, 0.32), (-1e30, 1e30)]
)
def test_ticks_are_round_few_and_inside(low, high):
    found = plot.ticks(low, high)
    assert 2 <= len(found) <= 9
    assert all(low - 1e-9 * (high - low) <= tick <= high + 1e-9 * (high - low) for tick in found)
    steps = np.diff(found)
    assert np.allclose(steps, steps[0])
    assert f"{steps[0]:e}"[0] in "125" or f"{steps[0]:e}".startswith("9.99")


def test_histogram_counts_every_finite_value():
    values = np.concatenate([np.random.default_rng(0).normal(size=500), [np.nan, np.inf, -np.inf]])
    counts = re.findall(r": ([\d,]+)</title></rect>", plot.histogram(values, "align"))
    assert sum(int(c.replace(",", "")) for c in counts) == 500


def test_histogram_of_one_value():
    svg = plot.histogram(np.full(10, 3.0), "flat")
    assert re.findall(r": (\d+)</title></rect>", svg) == ["10"] and "nan" not in svg


def test_lines_stand_where_the_numbers_say():
    svg = plot.lines({"loss": ([0.0, 10.0], [0.0, 1.0])}, "loss")
    (points,) = re.findall(r'points="([^"]*)"', svg)
    (x0, y0), (x1, y1) = (tuple(map(float, p.split(","))) for p in points.split())
    assert x0 < 60 and x1 == plot.WIDTH - plot.RIGHT and y0 > y1


@pytest.mark.parametrize("values", [(0.0, 0.00015), (0.0, 5e-9), (-123_456.0, 987_654.0), (1.0, 1.004), (1e20, 3e20)])
def test_labels_of_an_axis_differ_and_nothing_covers_them(values):
    svg = plot.lines({"a": ([1.0, 100_000.0], values)}, "an axis title")
    labels = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="end">([^<]*)</text>', svg)
    shown = [label for _, _, label in labels]
    assert len(shown) > 1 and len(set(shown)) == len(shown)
    assert all(float(x) - plot.CHARACTER * len(label) >= 0 for x, _, label in labels)  # inside the picture
    assert min(float(y) for _, y, _ in labels) - 11 > 11  # below the title, which stands at the top
    below = [
        (float(x), len(t)) for x, t in re.findall(r'<text x="([\d.]+)" y="196" text-anchor="middle">([^<]*)<', svg)
    ]
    assert len(below) > 1
    assert all(b - a > plot.CHARACTER * (m + n) / 2 for (a, m), (b, n) in pairwise(below))


def test_gaps_break_a_line_and_lone_points_are_dots():
    nan = float("nan")
    svg = plot.lines({"a": ([1, 2, 3, 4, 5], [1.0, 2.0, nan, 3.0, nan])}, "a")
    assert svg.count("<polyline") == 1 and svg.count("<circle") == 1 and "nan" not in svg


def test_long_curves_are_thinned_by_means():
    x, y = plot.thinned(range(30_000), np.arange(30_000) * 2.0)
    assert len(x) == plot.MAX_POINTS and np.allclose(y, 2 * x)


def test_interval_is_drawn_to_scale():
    svg = plot.interval(0.25, 0.5, 0.75)
    assert 'x1="37.0" x2="103.0"' in svg and 'cx="70.0"' in svg


def test_matrix_shows_undefined_as_a_dash():
    found = plot.matrix(["a", "<b>"], [[1.0, None], [float("nan"), -0.5]])
    assert found.count(">–<") == 2 and "&lt;b&gt;" in found and "\N{MINUS SIGN}0.50" in found


def test_numbers_for_people():
    shown = [number(v) for v in (None, float("nan"), 0.0, 1234567, 0.12345, 1e-5, 3.0, 5432.1, ">= 4")]
    assert shown == ["–", "–", "0", "1,234,567", "0.1235", "1e-05", "3", "5,432", "&gt;= 4"]


def test_text_survives_lone_surrogates_and_cuts():
    assert text("a\ud800b<") == "a\N{REPLACEMENT CHARACTER}b&lt;"
    assert text("x" * 500, 10) == "xxxxxxxxxx… (500 characters)"
