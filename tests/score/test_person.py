"""The scorer `person` without its package: decoding of the networks' outputs, measures and messages."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from prefkit.errors import UsageError
from prefkit.score.core import make_scorer
from prefkit.score.embed import blazepose
from prefkit.score.embed.blazepose import ANCHORS, BOX_VALUES, Crop, Detector, anchors, on_picture, square
from prefkit.score.scorers.person import visible
from prefkit.types import Candidate


def candidate(width: int = 200, height: int = 100) -> Candidate:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return Candidate("c", "r", 0, 0, "a hat", buffer.getvalue())


class FakeNetwork:
    """Outputs of the detector: people by anchor -> (logit, box and four keypoints in px of 224, relative to the anchor)."""

    def __init__(self, people):
        self.scores = np.full(ANCHORS, -20.0)
        self.values = np.zeros((ANCHORS, BOX_VALUES))
        for anchor, (logit, values) in people.items():
            self.scores[anchor], self.values[anchor] = logit, values

    def run(self, image):
        self.image = image

    def output(self, *shape):
        return {(ANCHORS,): self.scores, (ANCHORS, BOX_VALUES): self.values}[shape].copy()


def detector(people) -> Detector:
    made = object.__new__(Detector)
    made.net, made.anchors = FakeNetwork(people), anchors()
    return made


BODY = [0, 0, 22.4, 22.4, 0, 22.4, 0, -22.4, 0, 0, 0, 0]  # a box of 1/10; hips 1/10 below and top 1/10 above the centre


def test_a_detection_in_px_of_the_picture():
    first = 2 * (28 * 7 + 14)  # column 14, row 7 of the finest grid: its centre is (14.5, 7.5) / 28
    (person,) = detector({first: (2.0, BODY)})(Image.new("RGB", (200, 100)), square(np.array([0, 0, 200, 100]), 1), 0.5)
    x, y = 200 * 14.5 / 28, 200 * 7.5 / 28 - 50  # the picture is padded to a square of 200 px
    assert person.hips == pytest.approx([x, y + 20]) and person.top == pytest.approx([x, y - 20])
    assert person.box == pytest.approx([x - 10, y - 10, x + 10, y + 10])
    assert person.score == pytest.approx(1 / (1 + np.exp(-2.0))) and person.angle == 0
    assert person.crop().side == pytest.approx(2 * 1.25 * 40)


def test_overlapping_and_unsure_detections_do_not_count():
    near = {2 * (28 * 7 + 14): (2.0, BODY), 2 * (28 * 7 + 14) + 1: (3.0, BODY)}  # two anchors of one cell
    far = {2 * (28 * 20 + 3): (1.0, BODY), 2 * (28 * 20 + 25): (-0.1, BODY)}
    image, crop = Image.new("RGB", (224, 224)), square(np.array([0, 0, 224, 224]), 1)
    found = detector(near | far)(image, crop, 0.5)
    assert [round(p.score, 3) for p in found] == [0.953, 0.731]
    assert len(detector(near | far)(image, crop, 0.4)) == 3 and detector({})(image, crop, 0.4) == []


def test_the_angle_is_clockwise_from_upright():
    lying = [0, 0, 22.4, 22.4, -22.4, 0, 22.4, 0, 0, 0, 0, 0]  # the head points to the right
    (person,) = detector({100: (2.0, lying)})(Image.new("RGB", (99, 99)), square(np.array([0, 0, 99, 99]), 1), 0.5)
    assert person.angle == pytest.approx(np.pi / 2)


def test_a_mask_on_the_picture():
    mask = np.ones((256, 256), bool)
    left = Crop(np.array([50.0, 50.0]), 100.0)
    assert on_picture(mask, left, (200, 100)).mean() == 0.5 and on_picture(mask, left, (200, 100))[:, :64].all()
    mask[128:] = False  # the person is in the crop's upper half
    assert on_picture(mask, left, (200, 100))[:64, :64].all() and on_picture(mask, left, (200, 100)).mean() == 0.25
    turned = on_picture(mask, Crop(left.centre, 100.0, np.pi / 2), (200, 100))
    assert turned[:, 33:63].all() and not turned[:, :31].any() and not turned[:, 65:].any()


def test_visible_landmarks_are_within_the_image():
    points = np.tile([10.0, 10.0, 0.9], (33, 1))
    points[:11, 2] = 0.4
    points[11:22, 0] = [-1, 100, *[50] * 9]
    assert visible(points, (100, 80)) == pytest.approx(20 / 33)
    points[22:, 1] = 80
    assert visible(points, (100, 80)) == pytest.approx(9 / 33)


def made(measure="count", people=(), **options):
    scorer = make_scorer("person", {"measure": measure, "models": "x", **options})
    scorer.detect = lambda image, crop, confidence: list(people)

    class Landmark:
        def __call__(self, image, crop):
            return SimpleNamespace(points=np.tile([10.0, 10.0, 0.9], (33, 1)))

        def mask(self):
            return np.ones((256, 256), bool)

    scorer.landmarks = Landmark()
    return scorer


def person(x, score):
    return SimpleNamespace(score=score, crop=lambda: Crop(np.array([float(x), 50.0]), 100.0))


@pytest.mark.parametrize("measure, value", [("count", 2), ("visible", 1.0), ("share", 0.75)])
def test_measures(measure, value):
    """Two people; half of each mask overlaps with the other."""
    (score,) = made(measure, [person(50, 0.9), person(100, 0.7)]).score([candidate()])
    expected = {"count": 2.0, "visible": 1.0, "share": 0.75, "score": 0.9}
    assert score.value == value == expected.pop(measure) and score.aspects == expected


def test_an_image_without_people_scores_0():
    (score,) = made("share").score([candidate()])
    assert score.value == 0 and score.aspects == {"count": 0, "visible": 0, "score": 0}


def test_messages_name_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr("prefkit.score.scorers.person.installed", lambda *names: "2.3.0")
    with pytest.raises(UsageError, match=r"`models` is not set. Run: python .*/mesh/assets.py FOLDER --networks"):
        make_scorer("person", {}).spec()
    (tmp_path / blazepose.DETECTION).write_bytes(b"x")
    scorer = make_scorer("person", {"models": str(tmp_path)})
    with pytest.raises(UsageError, match=f"does not contain {blazepose.LANDMARKS}. Run: python .*{tmp_path} --netw"):
        scorer.load("cpu", "float32")
    (tmp_path / blazepose.LANDMARKS).write_bytes(b"y")
    spec = scorer.spec()
    assert spec.verified == "" and spec.range == (0, None) and len(spec.revision.split()) == 2
    with pytest.raises(UsageError, match="confidence is 1.5; it must be between 0 and 1"):
        make_scorer("person", {"confidence": 1.5})


def test_without_the_package_it_names_the_command(monkeypatch):
    from importlib.metadata import PackageNotFoundError

    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("prefkit.score.embed.packaged.distribution", missing)
    with pytest.raises(UsageError, match="person: ai-edge-litert is not installed. Run: pip install ai-edge-litert"):
        make_scorer("person", {"models": "x"}).spec()


def test_the_file_of_another_network_is_refused(monkeypatch, tmp_path):
    class Interpreter:
        def __init__(self, **options):
            pass

        def allocate_tensors(self):
            pass

        def get_input_details(self):
            return [{"index": 0, "shape": np.array([1, 256, 256, 3])}]

        def get_output_details(self):
            return []

    monkeypatch.setitem(sys.modules, "ai_edge_litert", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", SimpleNamespace(Interpreter=Interpreter))
    blazepose.LandmarkNetwork(tmp_path / blazepose.LANDMARKS)
    with pytest.raises(
        UsageError, match=r"shape \[1, 256, 256, 3\] instead of \[1, 224, 224, 3\]. Make the folder again"
    ):
        Detector(tmp_path / blazepose.DETECTION)
