"""The scorer `attributes` on right and wrong pictures."""

from __future__ import annotations

import io

import pytest

from prefkit.errors import UsageError
from prefkit.score.core import make_scorer
from prefkit.tiny.domain import BACKGROUNDS, COLOURS, ITEMS, PATTERNS, Scene
from prefkit.tiny.scene import render
from prefkit.types import Candidate

DRESS = Scene("dress", "red", "mint")


def candidate(scene: Scene, prompt: str) -> Candidate:
    buffer = io.BytesIO()
    render(scene, 8).save(buffer, "PNG")
    return Candidate("c", "r", 0, 0, prompt, buffer.getvalue())


def score(scene: Scene, prompt: str, **options):
    scorer = make_scorer("attributes", options)
    scorer.load("cpu", "float32")
    (found,) = scorer.score([candidate(scene, prompt)])
    return found


def test_spec_says_that_it_is_no_reward():
    met, palette = make_scorer("attributes", {}), make_scorer("attributes", {"measure": "palette", "palette": ["red"]})
    assert met.spec().evaluation_only and palette.spec().evaluation_only
    assert met.spec() != palette.spec()


LISTS = {"item": ITEMS, "colour": COLOURS, "background": BACKGROUNDS, "pattern": PATTERNS}


@pytest.mark.parametrize(
    "scene, prompt, aspects",
    [
        (
            DRESS,
            "a red dress on a plain mint background",
            {"item": 1.0, "colour": 1.0, "background": 1.0, "pattern": 1.0},
        ),
        (
            DRESS,
            "a blue dress on a striped mint background",
            {"item": 1.0, "colour": 0.0, "background": 1.0, "pattern": 0.0},
        ),
        (DRESS, "a dress on a plain sky background", {"item": 1.0, "background": 0.0, "pattern": 1.0}),
        (DRESS, "a red umbrella", {"item": 0.0, "colour": 1.0}),
        (
            Scene("handbag", "blue", "cream"),
            "a handbag to go with a red dress on a plain cream background",
            {"item": 1.0, "background": 1.0, "pattern": 1.0},
        ),
    ],
)
def test_met_is_the_share_of_what_is_named(scene, prompt, aspects):
    found = score(scene, prompt)
    left_open = LISTS.keys() - aspects.keys()  # what was seen is numbered where the prompt leaves it open
    seen = {f"which_{name}": list(LISTS[name]).index(getattr(scene, name)) for name in left_open}
    assert found.aspects == aspects | seen
    assert found.value == sum(aspects.values()) / len(aspects)
    assert found.text == f"{scene.colour} {scene.item} on plain {scene.background}"


def test_palette_looks_at_the_colour_alone():
    prompt = "an umbrella on a plain mint background"
    assert score(DRESS, prompt, measure="palette", palette=["red", "pink"]).value == 1.0
    assert score(DRESS, prompt, measure="palette", palette=["blue"]).value == 0.0
    assert score(DRESS, prompt, measure="palette", palette=["blue"]).aspects["item"] == 0.0


def test_compatible_follows_the_rule_and_needs_an_outfit():
    bag = Scene("handbag", "green", "grey", "dotted")
    assert score(bag, "a handbag to go with a pink dress", measure="compatible").value == 1.0
    assert score(bag, "a handbag to go with a blue dress", measure="compatible").value == 0.0
    failed = score(bag, "a handbag on a plain grey background", measure="compatible")
    assert failed.value is None and "names no outfit" in failed.error


def test_a_prompt_of_another_world_is_a_failure_not_zero():
    failed = score(DRESS, "a photo of a cat")
    assert failed.value is None and "not a prompt of the wardrobe" in failed.error
    assert failed.text == "red dress on plain mint"


def test_the_order_of_a_batch_is_kept():
    scenes = [DRESS, Scene("cap", "blue", "sand"), Scene("watch", "yellow", "rose", "checked")]
    found = make_scorer("attributes", {}).score([candidate(s, "a cap") for s in scenes])
    assert [f.text for f in found] == [
        "red dress on plain mint",
        "blue cap on plain sand",
        "yellow watch on checked rose",
    ]


@pytest.mark.parametrize(
    "options", [{"measure": "palette"}, {"palette": ["red"]}, {"measure": "palette", "palette": ["rouge"]}]
)
def test_options_that_cannot_be_meant_are_refused(options):
    with pytest.raises(UsageError, match="palette"):
        make_scorer("attributes", options)
