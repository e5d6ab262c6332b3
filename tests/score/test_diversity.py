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
