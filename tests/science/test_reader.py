"""The reader on its own renders, on other pictures, and after damage; as a scorer."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from prefkit.errors import UsageError

PARTS = {
    "melting": "cheese",
    "season": "oak",
    "buoyancy": "anchor",
    "absorption": "frog",
    "flame": "match",
    "layers": "tar",
}


def renders(science, law, subject):
    law = science.laws.LAWS[law]
    settings = tuple(law.settings.values()) or ("",)
    scenes = [science.looks.Scene(law.name, subject, look, setting) for look in law.looks for setting in settings]
    return scenes, [science.looks.render(scene, 77 + number) for number, scene in enumerate(scenes)]


@pytest.mark.parametrize("law", PARTS)
def test_looks_and_settings_are_read_also_after_the_autoencoder_with_noise(science, law):
    scenes, images = renders(science, law, PARTS[law])
    for pictures in (images, science.check_reader.blotched(images, 0)):
        seen = [science.reader.read(image, law, PARTS[law], threshold=-1, rival=0) for image in pictures]
        assert [(one.look, one.setting) for one in seen] == [(scene.look, scene.setting) for scene in scenes]


def test_other_pictures_are_refused(science):
    read, Scene = science.reader.read, science.looks.Scene
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    others = [Scene("rust", "saw", "clean"), Scene("season", "oak", "bare"), Scene("layers", "tar", "below")]
    pictures = [noise, Image.new("RGB", (64, 64), "grey"), *(science.looks.render(scene, 5) for scene in others)]
    assert [read(image, "melting", "cheese", rival=0).look for image in pictures] == [None] * 5
    assert science.reader.read(
        science.looks.render(Scene("melting", "cheese", "solid"), 5), "melting", "cheese", rival=0
    ).look


def test_another_subject_of_the_law_is_refused(science):
    image = science.looks.render(science.looks.Scene("flame", "torch", "green"), 3)
    assert science.reader.read(image, "flame", "torch").look == "green"
    assert science.reader.read(image, "flame", "stove").look is None


def test_a_larger_picture_is_read_like_the_small_one(science):
    image = science.looks.render(science.looks.Scene("season", "oak", "bare"), 3).resize((256, 256))
    assert science.reader.read(image, "season", "oak", rival=0).look == "bare"


@pytest.mark.parametrize(("law", "subject", "message"), [("gravity", "apple", "Unknown law"), ("rust", "oak", "'oak'")])
def test_unknown_laws_and_subjects(science, law, subject, message):
    with pytest.raises(UsageError, match=message):
        science.reader.read(Image.new("RGB", (64, 64)), law, subject)


def test_the_scorers_want_right_look_and_setting(science):
    Scene = science.looks.Scene
    images = [science.looks.render(Scene("absorption", "frog", "dark", lamp), 9) for lamp in ("red", "blue")]
    columns = {"law": ["absorption"] * 2, "subject": ["frog"] * 2}
    obeys = getattr(science.judge.obeys, "function", science.judge.obeys)
    assert list(obeys(images, ["", ""], **columns, look=["dark"] * 2, setting=["red"] * 2)) == [1.0, 0.0]
    recognized = getattr(science.judge.recognized, "function", science.judge.recognized)
    assert list(recognized(images, ["", ""], **columns)) == [1.0, 1.0]
