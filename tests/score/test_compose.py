"""Composed scenes with known content: the stand-in detector, and geneval's verdicts on every kind of prompt."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "pipelines" / "compose"


@pytest.fixture
def compose(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("check", "scenes", "detector"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module
    for name in ("check", "scenes", "detector"):
        sys.modules.pop(name, None)


def test_each_kind_has_a_right_and_a_wrong_scene(compose):
    check, rng = compose("check"), np.random.default_rng(3)
    drawn = [case for tag in check.KINDS for case in check.cases(rng, tag)]
    assert [all(case.held.values()) for case in drawn] == [True, False] * 6
    rows = check.table(check.measured(drawn, "garments"))
    (images,) = [row for row in rows if row[:2] == ["all", "image"]]
    assert images[2:4] == [12, 6] and images[-1] >= 10 / 12
    assert np.isnan(check.fraction(1, 0)) and check.fraction(1, 3) == 0.333


def test_the_stand_in_finds_the_garments(compose):
    scenes, detector, rng = compose("scenes"), compose("detector"), np.random.default_rng(5)
    image, garments = scenes.compose(rng, [("dress", "red"), ("umbrella", "blue"), ("handbag", "white")])
    (found,) = detector.garments([image])
    for garment in garments:
        (match,) = [one for one in found if one[0] == garment.item]
        assert np.abs(np.subtract(match[2], garment.box)).max() <= 3 and match[3].shape == (96, 96)
    assert len(found) == 3 and detector.boxes([image]) == [[one[:3] for one in found]]


@pytest.mark.parametrize("relation", ["left of", "right of", "above", "below"])
def test_the_first_garment_is_on_the_wanted_side(compose, relation):
    scenes = compose("scenes")
    _, (first, second) = scenes.compose(np.random.default_rng(1), [("cap", "red"), ("boot", "blue")], relation)
    axis, sign = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}[relation]
    middles = [(one.box[axis] + one.box[axis + 2]) / 2 for one in (first, second)]
    assert sign * (middles[0] - middles[1]) > 0
