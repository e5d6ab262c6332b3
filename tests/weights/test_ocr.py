"""The scorer `ocr` on the published PP-OCR weights of its package, on signs that this file draws with Pillow's own font."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from prefkit.score.core import make_scorer
from prefkit.score.scorers import ocr
from prefkit.types import Candidate

pytestmark = pytest.mark.weights


@dataclass(frozen=True)
class Sign:
    text: str
    size: int = 32
    wide: int = 256
    high: int = 96
    ink: str = "black"
    paper: str = "white"
    noise: int = 0

    def draw(self) -> Image.Image:
        image = Image.new("RGB", (self.wide, self.high), self.paper)
        font = ImageFont.load_default(self.size)
        ImageDraw.Draw(image).text((self.wide // 2, self.high // 2), self.text, self.ink, font, anchor="mm")
        noise = np.random.default_rng(0).normal(0, self.noise, (self.high, self.wide, 3))
        return Image.fromarray((np.asarray(image) + noise).round().clip(0, 255).astype(np.uint8))


#: (sign, text asked for)
SIGNS = {
    "plain": (Sign("SALE 50%"), "SALE 50%"),
    "noisy": (Sign("COFFEE", noise=60), "COFFEE"),
    "colours": (Sign("MUSEUM", ink="yellow", paper="navy"), "MUSEUM"),
    "small": (Sign("GARDEN", size=14), "GARDEN"),
    "faint, other case": (Sign("RED TEA", ink="#d0d0d0"), "red tea"),
    "two lines": (Sign("two\nlines", high=160), "two lines"),
    "one letter wrong": (Sign("RIVER"), "RIVEN"),
    "letters missing": (Sign("MUSE"), "MUSEUM"),
    "another word": (Sign("OPEN"), "CLOSED"),
    "no text": (Sign(""), "OPEN"),
    "zero for O": (Sign("HELL0"), "HELLO"),
    "O for zero": (Sign("HELLO"), "HELL0"),
}


@dataclass(frozen=True)
class Golden:
    """claim: of the spec. doubtful: a sign that is hard to read, how it is read, and the confidence in this reading."""

    claim: str
    doubtful: tuple[Sign, str, float]


GOLDEN = {
    "rapidocr": Golden(
        "PP-OCRv6 small, rapidocr 3.10.0, sha256 090f04ab 6f327246 e47acedf",
        (Sign("Wpx 7Q", size=12, ink="#b0b0b0", noise=15), "Wpx70", 0.901),
    ),
    "rapidocr-onnxruntime": Golden(
        "PP-OCRv4, rapidocr-onnxruntime 1.4.4, sha256 d2a7720d 48fc40f2 e47acedf",
        (Sign("Bakery", size=20, noise=70), "Bakery.", 0.925),
    ),
}
#: both packages read a zero within a word as the letter O
READ = {"zero for O": "HELLO"}
#: exact values: a misread letter would change a value by 1 / length
VALUES = {
    "one letter wrong": 4 / 5,
    "letters missing": 4 / 6,
    "another word": 2 / 6,
    "no text": 0.0,
    "O for zero": 4 / 5,
}


@pytest.fixture(scope="module", params=list(GOLDEN))
def loaded(request):
    """(golden figures of a package, scorer that has loaded its weights); the scorer can choose this package only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ocr, "PACKAGES", (request.param,))
        scorer = make_scorer("ocr", {})
        scorer.load("cpu", "float32")
        yield GOLDEN[request.param], scorer


def candidate(sign: Sign, asked: str) -> Candidate:
    file = io.BytesIO()
    sign.draw().save(file, "PNG")
    return Candidate("c", "r", 0, 0, f'a sign that says "{asked}"', file.getvalue())


def test_the_weights_are_the_published_ones(loaded):
    golden, scorer = loaded
    assert scorer.spec().verified == golden.claim


@pytest.mark.parametrize("name", SIGNS)
def test_a_sign_is_read(loaded, name):
    _, scorer = loaded
    sign, asked = SIGNS[name]
    (score,) = scorer.score([candidate(sign, asked)])
    assert score.text == READ.get(name, sign.text.replace("\n", " "))
    assert score.value == pytest.approx(VALUES.get(name, 1.0), abs=1e-9)


@pytest.mark.parametrize("above", [-0.02, 0.02])
def test_the_confidence_is_that_of_the_weights(loaded, above):
    golden, scorer = loaded
    sign, read, confidence = golden.doubtful
    picky = make_scorer("ocr", {"min_confidence": confidence + above})
    picky.reader = scorer.reader
    (score,) = picky.score([candidate(sign, sign.text)])
    assert score.text == (read if above < 0 else "")


def test_the_weights_pass_the_checks_of_every_scorer(cli, loaded):
    code, out, err = cli("score", "--check", "ocr")
    assert code == 0 and out.count(" ok ") == 7, out + err
