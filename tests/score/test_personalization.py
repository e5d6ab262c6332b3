"""The scorer personalization against the formula, and its ways out."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

from prefkit.errors import UsageError
from prefkit.score.core import make_scorer, missing_keys
from prefkit.types import Candidate

COLOURS = {"a": (250, 20, 20), "b": (20, 250, 20), "c": (20, 20, 250), "d": (240, 240, 30)}
USERS = "user,image,category,item\nann,a.png,hat,1\nann,b.png,hat,2\nann,c.png,shoe,3\n7,d.png,hat,4\n"


class Mean:
    """Stands where open_clip stands: an image's embedding is its mean colour."""

    library = "open_clip"

    def weights(self):
        return "mean"

    def revision(self):
        return None

    def load(self, device, dtype):
        pass

    def images(self, images, normalize=True):
        raw = torch.stack(
            [torch.tensor(image.resize((1, 1)).getpixel((0, 0)), dtype=torch.float32) for image in images]
        )
        return torch.nn.functional.normalize(raw, dim=-1) if normalize else raw

    def candidates(self, batch):
        return self.images([c.pil() for c in batch])


@pytest.fixture
def history(tmp_path):
    for name, colour in COLOURS.items():
        Image.new("RGB", (4, 4), colour).save(tmp_path / f"{name}.png")
    (tmp_path / "h.csv").write_text(USERS)
    return tmp_path / "h.csv"


def scorer_of(history, **options):
    scorer = make_scorer("personalization", {"history": str(history), **options})
    scorer.encoder = Mean()
    scorer.load("cpu", "float32")
    return scorer


def candidate(colour, **extra):
    data = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(data, "PNG")
    return Candidate("x", "r", 0, 0, image=data.getvalue(), extra=extra)


def unit(colour):
    return torch.nn.functional.normalize(torch.tensor(colour, dtype=torch.float64), dim=0)


@pytest.mark.parametrize(
    "extra, liked",
    [
        ({"category": "hat"}, "ab"),
        ({"category": "shoe"}, "c"),
        ({"category": "scarf"}, "abc"),  # none of that category: the whole history
        ({}, "abc"),
        ({"category": "hat", "truth": 2}, "a"),
        ({"category": "shoe", "truth": "3"}, "ab"),  # the only shoe is the answer: the rest of the history
    ],
)
def test_the_cosine_to_the_mean_of_the_right_items(history, extra, liked):
    colour = (200, 90, 40)
    (score,) = scorer_of(history).score([candidate(colour, user="ann", **extra)])
    mean = torch.stack([unit(COLOURS[name]) for name in liked]).mean(0)
    assert score.value == pytest.approx(float(unit(colour) @ mean / mean.norm()), abs=1e-6)


def test_as_fashiondpo_has_it(history):
    colour = (200, 90, 40)
    scorer = scorer_of(history, items="raw", scale=100, most=2)
    (score,) = scorer.score([candidate(colour, user="ann")])
    mean = torch.stack([torch.tensor(COLOURS[name], dtype=torch.float64) for name in "bc"]).mean(0)
    assert score.value == pytest.approx(100 * float(unit(colour) @ mean / mean.norm()), abs=1e-4)


def test_no_history_is_no_score_with_a_reason(history):
    scorer = scorer_of(history)
    known, unknown, emptied = scorer.score(
        [candidate((1, 2, 3), user=7), candidate((1, 2, 3), user="eve"), candidate((1, 2, 3), user="7", truth=4)]
    )
    assert known.value is not None
    assert unknown.value is None and "eve" in unknown.error
    assert emptied.value is None
    assert missing_keys(scorer, candidate((1, 2, 3))) == ["user"]


def test_the_spec_follows_the_history(history):
    before = scorer_of(history).spec()
    assert scorer_of(history).spec() == before
    Image.new("RGB", (4, 4), (1, 1, 1)).save(history.parent / "a.png")
    assert scorer_of(history).spec() != before


def test_what_is_wrong_with_a_history_is_said(history):
    with pytest.raises(UsageError, match="not set"):
        make_scorer("personalization", {})
    with pytest.raises(UsageError, match="none.csv does not exist"):
        scorer_of(history.parent / "none.csv")
    history.write_text("who,image\nann,a.png\n")
    with pytest.raises(UsageError, match="no column user"):
        scorer_of(history)
    history.write_text("user,image\nann,gone.png\n")
    with pytest.raises(UsageError, match=r"the image gone\.png does not exist"):
        scorer_of(history)
