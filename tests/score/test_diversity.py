"""How far images lie apart."""

from __future__ import annotations

import numpy as np
import pytest

from prefkit.score import diversity as d


def test_diversity_in_closed_form():
    images = np.zeros((3, 32, 32, 3))
    assert d.diversity(images) == 0.0
    images[0] = 1.0
    assert d.diversity(images) == pytest.approx(2 / 3)
    assert d.diversity(images[:1]) is None


def test_cosine_diversity_in_closed_form():
    """Unit vectors at 0, 90 and 180 degrees: distances 1, 2 and 1. A request with one image does not count."""
    rows = {("a", i): row for i, row in enumerate(np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))}
    assert d.mean_cosine_diversity(rows) == pytest.approx(4 / 3)
    assert d.mean_cosine_diversity(rows | {("b", 0): np.array([1.0, 0.0])}) == pytest.approx(4 / 3)
    same = {("c", i): np.array([0.6, 0.8]) for i in range(2)}
    assert d.mean_cosine_diversity(rows | same) == pytest.approx(2 / 3)
    assert d.mean_cosine_diversity({("b", 0): np.array([1.0, 0.0])}) is None
