"""Distances between sets of embeddings, against independent formulas in float64."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from prefkit.evaluate import set_distances as d
from prefkit.evaluate.distances import real_distance


def rows(n: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, width)) @ rng.normal(size=(width, width)) + rng.normal(size=width)


def textbook(a: np.ndarray, b: np.ndarray) -> float:
    """The formula of Heusel et al., by scipy's matrix square root."""
    c1, c2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return float(np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(c1 + c2 - 2 * np.real(sqrtm(c1 @ c2))))


def double_loop(a: np.ndarray, b: np.ndarray) -> float:
    def mean(x, y):
        return np.mean([np.exp(-np.sum((p - q) ** 2) / 200) for p in x for q in y])

    return 1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b))


def exact(mean: np.ndarray, covariance: np.ndarray, n: int, seed: int) -> np.ndarray:
    """[n, D] rows whose sample mean and covariance (n - 1) are exactly these."""
    raw = np.random.default_rng(seed).normal(size=(n, len(mean)))
    raw -= raw.mean(axis=0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw, rowvar=False))).T
    return white @ np.linalg.cholesky(covariance).T + mean


@pytest.mark.parametrize(("n", "m", "width"), [(40, 60, 8), (200, 30, 16), (30, 30, 1)])
def test_frechet_against_scipy(n, m, width):
    a, b = rows(n, width, 1), rows(m, width, 2)
    if width == 1:
        expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    else:
        expected = textbook(a, b)
    assert d.frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_singular_covariances():
    """Fewer images than numbers: scipy's root of the product is inexact there, so the reference is an explicit root."""
    a, b = rows(7, 20, 1), rows(9, 20, 2)
    c1, c2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(c1)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ c2 @ root)[-6:]).sum()  # rank 6 = 7 - 1
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(c1) + np.trace(c2) - 2 * shared
    assert d.frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_frechet_in_closed_form():
    width, n = 5, 50
    mean, eye = np.zeros(width), np.eye(width)
    a = exact(mean, eye, n, 1)
    assert d.frechet_distance(a, exact(mean, eye, 80, 2)) == pytest.approx(0, abs=1e-9)
    assert d.frechet_distance(a, exact(mean + 0.3, eye, n, 2)) == pytest.approx(width * 0.09, rel=1e-9)
    assert d.frechet_distance(a, exact(mean, 4 * eye, n, 2)) == pytest.approx(width * (2 - 1) ** 2, rel=1e-9)
    scales = np.diag(np.arange(1.0, width + 1) ** 2)
    both = d.frechet_distance(exact(mean, scales, n, 3), exact(mean + 1, 9 * scales, n, 4))
    assert both == pytest.approx(width + np.trace(4 * scales), rel=1e-9)


def test_cmmd_against_a_double_loop():
    a, b = d.unit(rows(13, 6, 1)), d.unit(rows(17, 6, 2))
    assert d.cmmd(a, b) == pytest.approx(double_loop(a, b), rel=1e-9)
    x, y = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    assert d.cmmd(x, y) == pytest.approx(2000 * (1 - np.exp(-0.01)), rel=1e-12)


def test_cmmd_in_blocks(monkeypatch):
    a, b = d.unit(rows(13, 6, 1)), d.unit(rows(17, 6, 2))
    whole = d.cmmd(a, b)
    monkeypatch.setattr(d, "BLOCK", 4)
    assert d.cmmd(a, b) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("measure", [d.frechet_distance, d.cmmd])
@pytest.mark.parametrize("n", [12, 40])
def test_both_are_symmetric_zero_for_equal_sets_and_blind_to_order(measure, n):
    a, b = d.unit(rows(n, 20, 1)), d.unit(rows(30, 20, 2))
    order = np.random.default_rng(3).permutation(n)
    assert measure(a, a) == pytest.approx(0, abs=1e-9) and measure(a, a[order]) == pytest.approx(0, abs=1e-9)
    assert measure(a, b) > 0.01
    assert measure(a, b) == pytest.approx(measure(b, a), rel=1e-9)
    assert measure(a, b) == pytest.approx(measure(a[order], b), rel=1e-9)


def frechet_of(rows, real, requests):
    return d._frechet_of(rows, d._moments(real), requests)


def cmmd_of(rows, real, requests):
    return d._cmmd_of(rows, real, d._block_sums(real, real).sum(), requests)


@pytest.mark.parametrize(("make", "measure"), [(frechet_of, d.frechet_distance), (cmmd_of, d.cmmd)])
@pytest.mark.parametrize("n", [8, 40])
def test_a_resampled_distance_is_that_of_the_repeated_rows(make, measure, n):
    a, real = d.unit(rows(n, 10, 1)), d.unit(rows(30, 10, 2))
    requests = np.arange(n) % 4  # not sorted
    counts = np.array([2, 0, 1, 3])
    repeated = np.concatenate([a[requests == r] for r in range(4) for _ in range(counts[r])])
    of = make(a, real, requests)
    assert of(counts) == pytest.approx(measure(repeated, real), rel=1e-6)
    assert of(np.ones(4, int)) == pytest.approx(measure(a, real), rel=1e-6)


def moved(seed: int, shift: float) -> dict[str, dict[str, float]]:
    """40 requests of 4 images; tuned is base moved by `shift` in each of 4 dimensions. Real images have the moments of
    the base's distribution exactly."""
    rng = np.random.default_rng(seed)
    base = (rng.normal(size=(40, 1, 4)) + rng.normal(size=(40, 4, 4))).reshape(-1, 4) / np.sqrt(2)
    codes = np.repeat(np.arange(40), 4)
    real = exact(np.zeros(4), np.eye(4), 60, seed)
    return d.compare_sets(base, base + shift, real, codes, samples=100, seed=seed)


def test_the_interval_covers_a_known_difference():
    for row in moved(0, 0.0).values():
        assert row["difference"] == 0 and row["ci_low"] == pytest.approx(0, abs=1e-9) == row["ci_high"]
    both = [moved(seed, 0.5) for seed in range(40)]
    for row in (row for rows in both for row in rows.values()):
        assert row["difference"] == pytest.approx(row["tuned"] - row["base"]) and row["ci_low"] < row["ci_high"]
    found = [rows["frechet"] for rows in both]
    assert np.mean([row["ci_low"] <= 4 * 0.25 <= row["ci_high"] for row in found]) >= 0.85  # nominal: 0.95
    assert np.mean([row["ci_low"] > 0 for row in found]) >= 0.7


def test_no_interval_where_it_would_mislead():
    few = {(f"r{i}", s): rows(1, 8, 10 * i + s)[0] for i in range(5) for s in range(2)}
    many = {(f"r{i}", s): rows(1, 8, 100 * i + s)[0] for i in range(6) for s in range(14)}
    some = dict(list(many.items())[:79])
    real = rows(80, 8, 999)
    cases = ((few, 8, False, False), (many, 8, True, True), (some, 8, False, True), (many, 100, False, True))
    for made, width, frechet, cmmd in cases:
        padded = {key: np.pad(row, (0, width - 8)) for key, row in made.items()}
        found = real_distance(padded, padded, np.pad(real, ((0, 0), (0, width - 8))), 20)
        assert (found["frechet"]["ci_low"] is not None, found["cmmd"]["ci_low"] is not None) == (frechet, cmmd)
        assert found["frechet"]["base"] > 0 and found["frechet"]["difference"] == 0
        assert (found["n"], found["n_real"], found["width"]) == (len(made), 80, width)
        assert any("singular" in text for text in found["caveats"]) == (width == 100)
    assert real_distance(many, many, real, 1)["frechet"]["ci_low"] is not None  # bootstrap: 1
    only = {("r0", 0): real[0]}
    one = real_distance(few | only, only, real, 20)
    assert one["n"] == 1 and one["frechet"]["base"] is None and one["cmmd"]["difference"] is None
    assert real_distance(few, {}, real, 20)["n"] == 0


def test_what_is_said_of_the_bias():
    assert d.bias(80, 80, 8) is None
    assert "more varied model (79 generated and 80 real" in d.bias(79, 80, 8)
    assert "80 images of each kind" in d.bias(9, 1000, 8)
    assert "singular" in d.bias(1000, 8, 8)


def test_few_images_flatter_a_model_that_lost_variety():
    """The reason for the warning: the truth is that the tuned model, with 0.8 of the spread, is further away."""
    rng = np.random.default_rng(0)
    real, base = rng.normal(size=(2, 32, 64))
    assert d.frechet_distance(0.8 * base, real) < d.frechet_distance(base, real)
    real, base = rng.normal(size=(2, 20_000, 8))
    assert d.frechet_distance(0.8 * base, real) > d.frechet_distance(base, real)
