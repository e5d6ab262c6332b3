"""GenEval's rules on constructed detections, and the scorer on a tiny detector of the real class."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from prefkit.errors import UsageError
from prefkit.score.core import make_scorer, score_batch
from prefkit.score.scorers.geneval import Found, clauses_of, evaluate, related
from prefkit.types import Candidate


def picture(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(buffer, "PNG")
    return buffer.getvalue()


def found(*objects):
    """found(("cup", 10, 10), ...): objects of 20 x 20 px at these centres, the first with the highest confidence."""
    return [Found(name, 0.99 - 0.01 * i, (x - 10, y - 10, x + 10, y + 10)) for i, (name, x, y) in enumerate(objects)]


CUP, DOG = {"class": "cup", "count": 2}, {"class": "dog", "count": 1}


@pytest.mark.parametrize(
    "include, exclude, objects, held",
    [
        ([CUP], [], [("cup", 20, 20), ("cup", 80, 20)], [1]),
        ([CUP], [], [("cup", 20, 20)], [0]),
        ([CUP], [], [("cup", 20, 20), ("cup", 50, 20), ("cup", 80, 20)], [1]),  # at least
        ([CUP], [{"class": "cup", "count": 3}], [("cup", 20, 20), ("cup", 50, 20), ("cup", 80, 20)], [1, 0]),  # exactly
        ([CUP, DOG], [], [("cup", 20, 20), ("dog", 80, 20)], [0, 1]),
        ([DOG | {"color": "blue"}], [], [("dog", 20, 20)], [1, 1]),
        ([DOG | {"color": "red"}], [], [("dog", 20, 20)], [1, 0]),
        ([DOG, {"class": "cup", "position": ["left of", 0]}], [], [("dog", 80, 50), ("cup", 20, 50)], [1, 1, 1]),
        ([DOG, {"class": "cup", "position": ["right of", 0]}], [], [("dog", 80, 50), ("cup", 20, 50)], [1, 1, 0]),
        ([DOG, {"class": "cup", "position": ["above", 0]}], [], [("cup", 20, 50)], [0, 1, 0]),
    ],
)
def test_clauses_against_detections(include, exclude, objects, held):
    assert list(evaluate(include, exclude, found(*objects), lambda one: "blue").values()) == held


@pytest.mark.parametrize(
    "dx, dy, relations",
    [
        (-60, 0, {"left of"}),
        (60, 5, {"right of"}),
        (0, -60, {"above"}),
        (0, 60, {"below"}),
        (60, 60, {"right of", "below"}),
        (3, 3, set()),  # within a tenth of the sizes
        (3, 60, {"below"}),
        (7, -7, set()),  # 3 of 9.9 on each axis after the slack
    ],
)
def test_relations_of_two_boxes(dx, dy, relations):
    (a, b) = found(("a", 100 + dx, 100 + dy), ("b", 100, 100))
    known = ("left of", "right of", "above", "below")
    assert {relation for relation in known if related(a.box, b.box, relation)} == relations


@pytest.mark.parametrize(
    "include, message",
    [
        (None, "include is not a list"),
        ([], "include is not a list"),
        ([{"count": 1}], "clause 0 must be an object with class"),
        ([{"class": "cup", "colour": "red"}], "clause 0 must be an object with class"),
        ([{"class": "cup", "count": 0}], "count is 0"),
        ([{"class": "cup", "color": "teal"}], "color is 'teal'"),
        ([CUP, {"class": "dog", "position": ["near", 0]}], "position is"),
        ([{"class": "dog", "position": ["above", 0]}], "position is"),
    ],
)
def test_clauses_that_make_no_sense(include, message):
    with pytest.raises(ValueError, match=message):
        clauses_of({"include": include}, "include")


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    import torch
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

    folder = tmp_path_factory.mktemp("detector")
    torch.manual_seed(0)
    names = dict(enumerate(("cup", "dog", "cat")))
    config = YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[32, 32], patch_size=8,
        num_detection_tokens=4, use_mid_position_embeddings=False, id2label=names, label2id={v: k for k, v in names.items()},
    )  # fmt: skip
    YolosForObjectDetection(config).save_pretrained(folder)
    size = {"shortest_edge": 32, "longest_edge": 64}
    YolosImageProcessor(size=size).save_pretrained(folder)
    return folder


def test_a_real_detector_class_is_asked(detector):
    options = {"detector": str(detector), "model": "tiny", "threshold": 0.0, "counting_threshold": 1.0}
    scorer = make_scorer("geneval", options)
    scorer.load("cpu", "float32")
    clauses = [{"class": "cup"}, {"class": "dog", "color": "red"}]
    batch = [
        Candidate(str(i), "r", i, i, "p", picture(colour), extra={"include": clauses})
        for i, colour in enumerate(("red", "green"))
    ]
    scores = score_batch(scorer, batch)
    objects = scorer._detect([c.pil() for c in batch])
    assert all(len(one) == 4 for one in objects) and {f.name for one in objects for f in one} <= {"cup", "dog", "cat"}
    for score, seen in zip(scores, objects):
        assert set(score.aspects) == {"0 cup count", "1 dog count", "1 dog color"}
        assert score.aspects["0 cup count"] == float(any(f.name == "cup" for f in seen))
        assert score.value == pytest.approx(sum(score.aspects.values()) / 3)
    (counting,) = score_batch(
        scorer, [Candidate("c", "r", 0, 0, "p", picture("red"), extra={"include": clauses, "tag": "counting"})]
    )
    assert counting.value == 0.0 and counting.text == "found: nothing"
    (failed,) = score_batch(scorer, [Candidate("c", "r", 0, 0, "p", picture("red"), extra={"include": "cup"})])
    assert failed.value is None and "include is not a list" in failed.error


def test_a_colour_is_that_of_the_crop(monkeypatch):
    scorer = make_scorer("geneval", {"detector": "any", "model": "tiny"})
    scorer.encoder.load("cpu", "float32")
    crops = []

    def green(images):
        crops.extend(images)
        return scorer.encoder.texts(["a photo of a green dress"])

    monkeypatch.setattr(scorer.encoder, "images", green)
    assert scorer._colour(Image.new("RGB", (20, 30)), Found("dress", 1.0, (2.0, 3.0, 300.0, 9.5))) == "green"
    assert [crop.size for crop in crops] == [(18, 7)]


def test_what_is_not_a_detector_is_refused(tmp_path):
    with pytest.raises(UsageError, match="`detector` is not set"):
        make_scorer("geneval", {})
    with pytest.raises(UsageError, match="could not be loaded as an object detector"):
        make_scorer("geneval", {"detector": str(tmp_path), "model": "tiny"}).load("cpu", "float32")
