"""GenEval's rules on constructed detections, and the scorer on a tiny detector of the real class."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from PIL import Image

from prefkit.errors import PluginError, UsageError
from prefkit.score.core import make_scorer, score_batch
from prefkit.score.scorers._clauses import COLOURS, Found, clauses_of, evaluate, kept, overlap, related
from prefkit.score.scorers._prompts import clauses_in
from prefkit.score.scorers.geneval import crop
from prefkit.types import Candidate


def picture(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(buffer, "PNG")
    return buffer.getvalue()


def by_class(objects):
    return {name: [one for one in objects if one.name == name] for name in {one.name for one in objects}}


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
        ([DOG, {"class": "cup", "position": ["above", 0]}], [], [("cup", 20, 50)], [0, 1, None]),
        ([DOG | {"color": "blue"}], [], [("cup", 20, 50)], [0, None]),
        ([CUP | {"color": "blue"}], [], [("cup", 20, 50)], [0, None]),
    ],
)
def test_clauses_against_detections(include, exclude, objects, held):
    assert list(evaluate(include, exclude, by_class(found(*objects)), lambda *_: "blue").values()) == held


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
        ([CUP, {"class": "dog", "position": [["near"], 0]}], "position is"),
        ([{"class": "dog", "position": ["above", 0]}], "position is"),
    ],
)
def test_clauses_that_make_no_sense(include, message):
    with pytest.raises(ValueError, match=message):
        clauses_of({"include": include}, "include")


KNOWN = {"cup", "dog", "knife", "bus", "vase", "wine glass", "orange", "scissors", "sheep", "person", "computer mouse"}


@pytest.mark.parametrize(
    "prompt, include",
    [
        ("a photo of a cup", [("cup",)]),
        ("A photo of an orange.", [("orange",)]),
        ("a photo of a wine glass and an orange", [("wine glass",), ("orange",)]),
        ("a photo of two vases", [("vase", 2)]),
        ("four buses", [("bus", 4)]),
        ("three wine glasses", [("wine glass", 3)]),
        ("two knives", [("knife", 2)]),
        ("two knifes", [("knife", 2)]),  # as GenEval writes it
        ("two sheep and one person", [("sheep", 2), ("person", 1)]),
        ("three people", [("person", 3)]),
        ("a photo of an orange scissors", [("scissors", None, "orange")]),
        ("two red computer mice", [("computer mouse", 2, "red")]),
        ("a photo of a red cup and a blue dog", [("cup", None, "red"), ("dog", None, "blue")]),
        ("a photo of a dog left of a cup", [("cup",), ("dog", None, None, ["left of", 0])]),
        ("a red cup to the right of a dog", [("dog",), ("cup", None, "red", ["right of", 0])]),
        ("a dog above an orange", [("orange",), ("dog", None, None, ["above", 0])]),
        ("a dog below an orange", [("orange",), ("dog", None, None, ["below", 0])]),
    ],
)
def test_clauses_are_read_from_prompts_of_genevals_form(prompt, include):
    keys = ("class", "count", "color", "position")
    expected = [{key: value for key, value in zip(keys, clause) if value is not None} for clause in include]
    columns = clauses_in(prompt, KNOWN.__contains__)
    assert columns["include"] == clauses_of(columns, "include") == expected
    exact = [{"class": c["class"], "count": c["count"] + 1} for c in expected if "count" in c]  # exactly, not at least
    assert (columns.get("exclude", []), columns.get("tag")) == (exact, "counting" if exact else None)


@pytest.mark.parametrize(
    "prompt, message",
    [
        ("", "does not start with a, an or a number"),
        ("a photo of no dogs", "'no dogs' does not start with"),
        ("dogs and cups", "'dogs' does not start with"),
        ("a cup on a table in the sun", "no class for 'cup on a table in the sun'"),
        ("a teal cup", "no class for 'teal cup'"),
        ("a cups", "no class for 'cups'"),
        ("a red dog and a blue dog", "names dog twice"),
    ],
)
def test_other_prompts_are_not_read(prompt, message):
    with pytest.raises(ValueError, match=message):
        clauses_in(prompt, KNOWN.__contains__)


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
    objects = scorer.detect([c.pil() for c in batch], 0.0)
    assert all(len(one) == 4 for one in objects) and {f.name for one in objects for f in one} <= {"cup", "dog", "cat"}
    for score, seen in zip(scores, objects):
        dog = any(f.name == "dog" for f in seen)
        assert set(score.aspects) == {"0 cup count", "1 dog count", *(["1 dog color"] * dog)}
        assert score.aspects["0 cup count"] == float(any(f.name == "cup" for f in seen))
        assert score.value == pytest.approx(sum(score.aspects.values()) / 3)
    (counting,) = score_batch(
        scorer, [Candidate("c", "r", 0, 0, "p", picture("red"), extra={"include": clauses, "tag": "counting"})]
    )
    assert counting.value == 0.0 and counting.text == "found: nothing"
    (failed,) = score_batch(scorer, [Candidate("c", "r", 0, 0, "p", picture("red"), extra={"include": "cup"})])
    assert failed.value is None and "include is not a list" in failed.error
    unknown = {"include": [{"class": "Cat"}, {"class": "cats"}]}
    (failed,) = score_batch(scorer, [Candidate("c", "r", 0, 0, "p", picture("red"), extra=unknown)])
    assert failed.error == "the detector knows no class 'cats'. Did you mean 'cat'?"
    read, failed = score_batch(
        scorer, [Candidate(p[-4:], "r", 0, 0, p, picture("red")) for p in ("two cups left of a dog", "a cup by a dog")]
    )
    assert {"0 dog count", "1 cup count", "exclude 0 cup"} <= read.aspects.keys() and read.text == "found: nothing"
    assert failed.value is None and failed.error.endswith("GenEval's: the detector knows no class for 'cup by a dog'")


def test_a_colour_is_that_of_the_crop(monkeypatch):
    scorer = make_scorer("geneval", {"detector": "any", "model": "tiny", "texts": ("a {colour} {name}",)})
    scorer.encoder.load("cpu", "float32")
    crops = []

    def green(images):
        crops.extend(images)
        return scorer.encoder.texts(["a green dress"])

    monkeypatch.setattr(scorer.encoder, "images", green)
    assert scorer._colour(Image.new("RGB", (20, 30)), Found("x", 1.0, (2.0, 3.0, 300.0, 9.6)), "dress") == "green"
    assert [crop.size for crop in crops] == [(18, 7)]


def test_what_is_not_a_detector_is_refused(tmp_path):
    with pytest.raises(UsageError, match="`detector` is not set"):
        make_scorer("geneval", {})
    with pytest.raises(UsageError, match="could not be loaded as an object detector"):
        make_scorer("geneval", {"detector": str(tmp_path), "model": "tiny"}).load("cpu", "float32")
    with pytest.raises(UsageError, match="each text needs {colour}"):
        make_scorer("geneval", {"detector": "any", "model": "tiny", "texts": ("a {name}",)})


def test_the_background_of_a_crop_is_grey_where_the_mask_is_not():
    image, mask = Image.new("RGB", (4, 3), (9, 8, 7)), np.zeros((3, 4), bool)
    mask[1, 1:3] = True
    pixels = np.asarray(crop(image, Found("cup", 1.0, (0.6, 0, 3.4, 2), mask)))
    assert pixels.tolist() == [[[0x99] * 3] * 2, [[9, 8, 7]] * 2]
    assert crop(image, Found("cup", 1.0, (2, 2, 2, 2))) == image


# The published program restated from GenEval's repository (github.com/djghosh13/geneval, evaluation/evaluate_images.py),
# with numpy and without the code under test: options threshold=0.3, counting_threshold=0.9, max_objects=16,
# max_overlap=1.0 and position_threshold=0.1. `correct` is what its benchmark counts.


def published_objects(detections, tag, max_overlap):
    least = 0.9 if tag == "counting" else 0.3
    result = {}
    for name in {one.name for one in detections}:
        rows = sorted((one for one in detections if one.name == name), key=lambda one: one.confidence, reverse=True)
        rows, chosen = [one for one in rows if one.confidence > least][:16], []
        while rows:
            best, *rest = rows
            chosen.append(best)
            rows = [one for one in rest if max_overlap == 1.0 or published_iou(best.box, one.box) < max_overlap]
        result |= {name: chosen} if chosen else {}
    return result


def published_iou(a, b):
    a, b = np.array(a), np.array(b)
    corner = np.r_[np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])]
    inner, one, two = (np.prod(np.maximum(box[2:] - box[:2] + 1, 0)) for box in (corner, a, b))
    return inner / (one + two - inner)


def published_relations(a, b):
    a, b = np.reshape(a, (2, 2)), np.reshape(b, (2, 2))
    offset = a.mean(0) - b.mean(0)
    revised = np.sign(offset) * np.maximum(np.abs(offset) - 0.1 * (a[1] - a[0] + b[1] - b[0]), 0)
    if (np.abs(revised) < 1e-3).all():
        return set()
    dx, dy = revised / np.linalg.norm(offset)
    sides = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {side for side, holds in sides.items() if holds}


def published_correct(metadata, objects, colour_of):
    correct, groups = True, []
    for clause in metadata["include"]:
        mine, count = objects.get(clause["class"], [])[: clause["count"]], clause["count"]
        matched = len(mine) == count
        if matched and "color" in clause:
            matched = [colour_of(one) for one in mine].count(clause["color"]) >= count
        if matched and "position" in clause:
            side, other = clause["position"]
            matched = groups[other] is not None and all(
                side in published_relations(a.box, b.box) for a in mine for b in groups[other]
            )
        groups.append(mine if matched else None)
        correct = correct and matched
    return correct and all(len(objects.get(c["class"], [])) < c["count"] for c in metadata.get("exclude", []))


def published_prompt(rng):
    """Metadata of one of the six kinds of prompts, as create_prompts.py writes it, over three classes and colours."""
    a, b = rng.sample(("cup", "dog", "computer mouse"), 2)
    colours, count = rng.sample(COLOURS[:3], 2), rng.randint(2, 4)
    one, two = {"class": a, "count": 1}, {"class": b, "count": 1}
    side = rng.choice(("left of", "right of", "above", "below"))
    many = {"include": [{"class": a, "count": count}], "exclude": [{"class": a, "count": count + 1}]}
    return rng.choice(
        [
            {"tag": "single_object", "include": [one]},
            {"tag": "two_object", "include": [one, two]},
            {"tag": "counting", **many},
            {"tag": "colors", "include": [one | {"color": colours[0]}]},
            {"tag": "position", "include": [two, one | {"position": [side, 0]}]},
            {"tag": "color_attr", "include": [one | {"color": colours[0]}, two | {"color": colours[1]}]},
        ]
    )


def published_detections(rng, name_of):
    """Random objects; confidences are often equal to a threshold, centres often equal or on a diagonal."""
    result = []
    for _ in range(rng.choice((0, 1, 2, 3, 4, 5, 6, 40))):
        x, y = rng.choice((20, 40, 60)), rng.choice((20, 40, 60))
        width, height = rng.choice((8, 30)), rng.choice((8, 30))
        confidence = rng.choice((0.3, 0.9, rng.random(), 0.9 + rng.random() / 10))
        name = name_of(rng.choice(("cup", "dog", "computer mouse")))
        result.append(Found(name, confidence, (x - width, y - height, x + width, y + height)))
    return result


@pytest.mark.parametrize("max_overlap", [1.0, 0.5])
def test_random_detections_are_judged_as_the_published_program_judges_them(monkeypatch, max_overlap):
    options = {"detector": "any", "model": "tiny", "value": "all", "max_overlap": max_overlap}
    scorer = make_scorer("geneval", options)
    scorer.detect = type("Detector", (), {"classes": frozenset({"cup", "dog", "mouse"})})()
    rng, seen = random.Random(7), {}
    image = Image.new("RGB", (8, 8))
    for number in range(800):
        metadata = published_prompt(rng)
        coco = published_detections(rng, lambda name: name.replace("computer ", ""))
        colours = {one: rng.choice(COLOURS[:3]) for one in coco}
        monkeypatch.setattr(scorer, "_colour", lambda _, one, name, colours=colours: colours[one])
        named = [one._replace(name="computer mouse" if one.name == "mouse" else one.name) for one in coco]
        objects = published_objects(named, metadata["tag"], max_overlap)
        shown = {one: colours[old] for one, old in zip(named, coco)}
        correct = published_correct(metadata, objects, shown.__getitem__)
        score = scorer._score(Candidate(str(number), "r", 0, 0, "p", extra=metadata), image, coco)
        assert score.value == correct, (metadata, coco)
        assert correct == all(score.aspects.values())
        seen.setdefault(metadata["tag"], set()).add(correct)
    assert len(seen) == 6 and all(answers == {True, False} for answers in seen.values())


def test_at_most_sixteen_objects_and_no_overlap_count():
    many = [Found("cup", 0.31 + i / 100, (i * 50, 0, i * 50 + 9, 9)) for i in range(20)]
    assert [one.confidence for one in kept(many, 0.3, 1.0)] == sorted(
        (0.31 + i / 100 for i in range(4, 20)), reverse=True
    )
    assert kept([Found("cup", 0.3, (0, 0, 9, 9))], 0.3, 1.0) == []  # more than the threshold
    near = [Found("cup", 0.8, (0, 0, 9, 9)), Found("cup", 0.9, (0, 0, 9, 19)), Found("cup", 0.7, (30, 0, 39, 9))]
    assert overlap(near[0].box, near[1].box) == 0.5
    assert [one.confidence for one in kept(near, 0.3, 0.5)] == [0.9, 0.7]
    assert [one.confidence for one in kept(near, 0.3, 0.6)] == [0.9, 0.8, 0.7]


FUNCTION = """
def cups(images):
    return [[("Cup", 0.95, (0, 0, 8, 8)), ("cup", 0.5, (8, 8, 16, 16), MASK)] for _ in images]

def short(images):
    return []

def odd(images):
    return [[("cup", 0.9)] for _ in images]

def broken(images):
    return 1 / 0

number = 3
"""


def test_a_function_detects(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(FUNCTION.replace("MASK", "[[True] * 16] * 16"))
    scorer = make_scorer("geneval", {"detector": f"{path}:cups", "model": "tiny"})
    assert scorer.spec().revision.split()[0] == scorer.detect.identity()
    scorer.load("cpu", "float32")
    extra = {"include": [{"class": "cup", "count": 2, "color": "red"}]}
    two, one = (
        score_batch(scorer, [Candidate("c", "r", 0, 0, "p", picture("red"), extra=extra | {"tag": tag})])[0]
        for tag in ("colors", "counting")
    )
    assert two.aspects["0 cup count"] == 1.0 and two.text == "found: cup 0.95, cup 0.50"
    assert one.aspects == {"0 cup count": 0.0} and one.value == 0.0 and one.text == "found: cup 0.95"
    (unread,) = score_batch(scorer, [Candidate("c", "r", 0, 0, "a photo of two cups", picture("red"))])
    assert unread.value is None and "the classes of the detector function are unknown" in unread.error
    for name, message in (
        ("short", "must return a list with one list of objects per image"),
        ("odd", "an object is (class, confidence"),
        ("broken", "failed: ZeroDivisionError"),
    ):
        detect = make_scorer("geneval", {"detector": f"{path}:{name}", "model": "tiny"}).detect
        with pytest.raises(PluginError, match=message.replace("(", r"\(")):
            detect([Image.new("RGB", (16, 16))], 0.3)
    with pytest.raises(PluginError, match="must be a function"):
        make_scorer("geneval", {"detector": f"{path}:number", "model": "tiny"})
    with pytest.raises(UsageError, match="has no dogs"):
        make_scorer("geneval", {"detector": f"{path}:dogs", "model": "tiny"})
    path.write_text(FUNCTION.replace("MASK", "[[True] * 3]"))
    with pytest.raises(PluginError, match="mask of shape"):
        make_scorer("geneval", {"detector": f"{path}:cups", "model": "tiny"}).detect([Image.new("RGB", (16, 16))], 0.3)
