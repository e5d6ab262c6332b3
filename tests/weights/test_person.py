"""The scorer `person` on MediaPipe's BlazePose, on photographs of scikit-image: a portrait, and photographs without people.

The networks come from the wheel of mediapipe 0.10.21, by the command that the scorer's message names. To avoid the download,
set PREFKIT_WHEELS to a folder with this wheel.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from prefkit.score.core import make_scorer
from prefkit.types import Candidate

pytestmark = pytest.mark.weights

ASSETS = Path(__file__).parents[2] / "pipelines" / "mesh" / "assets.py"
ASTRONAUT = Image.fromarray(data.astronaut())


def candidate(image: Image.Image) -> Candidate:
    file = io.BytesIO()
    image.save(file, "PNG")
    return Candidate("c", "r", 0, 0, "a photograph", file.getvalue())


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blazepose")
    wheels = os.environ.get("PREFKIT_WHEELS")
    options = ["--from", wheels] if wheels else []
    subprocess.run([sys.executable, ASSETS, folder, "--networks", *options], check=True, timeout=600)
    assert sorted(path.name for path in folder.iterdir()) == ["pose_detection.tflite", "pose_landmark_full.tflite"]
    return folder


@pytest.fixture(scope="module")
def score(models):
    """score(image, measure) -> its Score"""

    def call(image, measure="count"):
        scorer = make_scorer("person", {"models": str(models), "measure": measure})
        scorer.load("cpu", "float32")
        return scorer.score([candidate(image)])[0]

    return call


def test_the_weights_are_the_published_ones(models):
    spec = make_scorer("person", {"models": str(models)}).spec()
    assert spec.verified == "BlazePose full, mediapipe 0.10.21, sha256 9ba9dd3d e9a5c5cb"


def test_a_portrait(score):
    found = score(ASTRONAUT)
    assert found.value == 1
    assert found.aspects == pytest.approx({"visible": 15 / 33, "share": 0.438, "score": 0.814}, abs=0.03)


def test_two_portraits_side_by_side(score):
    both = Image.new("RGB", (1024, 512))
    both.paste(ASTRONAUT, (0, 0))
    both.paste(ASTRONAUT.transpose(Image.Transpose.FLIP_LEFT_RIGHT), (512, 0))
    found = score(both)
    assert found.value == 2 and found.aspects["share"] == pytest.approx(0.435, abs=0.03)


@pytest.mark.parametrize("name", ["chelsea", "coffee", "rocket", "grass"])
def test_photographs_without_people(score, name):
    found = score(Image.fromarray(getattr(data, name)()).convert("RGB"), "share")
    assert found.value == 0 and set(found.aspects.values()) == {0.0}


def test_the_share_is_that_of_the_image(score):
    wide = Image.new("RGB", (1024, 1024), (60, 60, 60))
    wide.paste(ASTRONAUT, (256, 512))
    assert score(wide, "share").value == pytest.approx(score(ASTRONAUT, "share").value / 4, abs=0.02)


def test_it_does_not_reward_anatomy(score):
    """The detector finds a body whose halves are swapped with nearly the same score."""
    swapped = Image.fromarray(np.roll(np.asarray(ASTRONAUT), 256, axis=0))
    found = score(swapped)
    assert found.value == 1 and found.aspects["score"] == pytest.approx(0.79, abs=0.05)


def test_it_passes_the_checks_of_every_scorer(cli, models):
    code, out, err = cli("score", "--check", "person", "--models", models)
    assert code == 0 and len(out.splitlines()) == 8 and "FAILED" not in out, out + err
