"""The history of `personalization` from tables of every kind: whose images are whose, by value."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

import prefkit
from prefkit.errors import UsageError
from prefkit.score.core import make_scorer
from prefkit.types import Candidate

COMPOSED, APART = "caf\u00e9", "cafe\u0301"
#: user, image, category, item: ids that look like numbers, missing values and truths
ROWS = [
    {"user": "00001", "image": "red.png", "category": "01", "item": "007"},
    {"user": "00001", "image": "green.png", "category": "1", "item": "7"},
    {"user": "1", "image": "blue.png", "category": "NA", "item": "1e5"},
    {"user": "NA", "image": f"{COMPOSED}.png", "category": None, "item": None},
    {"user": APART, "image": "green.png", "category": "True", "item": "null"},
]
COLOURS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250), APART: (250, 250, 0)}


class Mean:
    """An image's embedding is its mean colour."""

    def load(self, device, dtype):
        pass

    def images(self, images, normalize=True):
        raw = torch.tensor([image.resize((1, 1)).getpixel((0, 0)) for image in images], dtype=torch.float32)
        return torch.nn.functional.normalize(raw, dim=-1) if normalize else raw

    def candidates(self, batch):
        return self.images([c.pil() for c in batch])


def write(folder: Path, kind: str, rows: list[dict]) -> Path:
    path = folder / f"h.{kind}"
    if kind.lower() == "parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=";" if kind == "CSV" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.fixture
def pictures(tmp_path):
    for name, colour in COLOURS.items():
        Image.new("RGB", (4, 4), colour).save(tmp_path / f"{name}.png")
    return tmp_path


def score(path: Path, colour: str, **extra) -> float | None:
    scorer = make_scorer("personalization", {"history": str(path)})
    scorer.encoder = Mean()
    scorer.load("cpu", "float32")
    data = io.BytesIO()
    Image.new("RGB", (4, 4), COLOURS[colour]).save(data, "PNG")
    (found,) = scorer.score([Candidate("x", "r", 0, 0, image=data.getvalue(), extra=extra)])
    return found.value


@pytest.mark.parametrize("kind", ["csv", "CSV", "jsonl", "parquet", "PARQUET"])
def test_whose_images_are_whose(pictures, kind):
    path = write(pictures, kind, ROWS)
    half = pytest.approx(0.5**0.5)
    assert score(path, "red", user="00001") == half and score(path, "blue", user="00001") == 0
    assert score(path, "blue", user="1") == score(path, "blue", user=1) == score(path, "blue", user=1.0) == 1
    assert score(path, "red", user="01") is None
    assert score(path, "red", user="00001", category="01") == 1 and score(path, "red", user="00001", category=1) == 0
    assert score(path, "red", user="00001", truth="007") == 0 and score(path, "green", user="00001", truth=7) == 0
    assert score(path, APART, user="NA") == 1 and score(path, "green", user=COMPOSED) == 1


def test_a_user_that_is_a_number_with_gaps_in_parquet(pictures):
    pd.DataFrame({"user": [1.0, 2.0], "image": ["red.png", "green.png"]}).to_parquet(pictures / "h.parquet")
    assert score(pictures / "h.parquet", "red", user="1") == 1 and score(pictures / "h.parquet", "red", user=2) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user,image\na,red.png\nb,green, x.png\n", r"h.csv row 2 \(line 3\) has 3 fields"),
        ("user,image\na,red.png\n,green.png\n", r"row 2 \(line 3\) needs a user"),
        ("user,image\na,red.png\nb,\n", r"row 2 \(line 3\) needs a user and the path of an image"),
        ("user,image\na,red.png\nb,gone.png\n", r"row 2 \(line 3\): the image gone.png does not exist"),
        ("user,user\na,red.png\n", "twice"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(pictures, text, message):
    (pictures / "h.csv").write_text(text)
    with pytest.raises(UsageError, match=message):
        score(pictures / "h.csv", "red", user="a")


def test_through_the_verbs(pictures, cli):
    """Requests from one kind of table and the history from another meet by their ids."""
    write(pictures, "parquet", ROWS)
    (pictures / "p.csv").write_text("prompt,user\na hat,00001\na coat,1\n")
    (pictures / "draw.py").write_text(
        "from PIL import Image\ndef draw(prompts, seeds):\n    return [Image.new('RGB', (64, 64), (250, 0, 0)) for _ in seeds]\n"
    )
    recipe = {
        "run": str(pictures / "run"),
        "requests": {"source": str(pictures / "p.csv")},
        "generate": {"own": {"use": f"{pictures}/draw.py:draw", "n": 1}},
        "score": {"own": {"use": "personalization", "history": str(pictures / "h.parquet"), "model": "tiny"}},
    }
    (pictures / "r.yaml").write_text(json.dumps(recipe))
    for verb in ("generate", "score"):
        code, _, err = cli(verb, "-r", pictures / "r.yaml")
        assert code == 0, err
    scores = prefkit.Run(pictures / "run").scores()
    assert len(scores) == 2 and scores["own"].notna().all() and scores["own"].nunique() == 2
