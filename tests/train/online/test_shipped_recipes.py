from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prefkit.config import compatibility, plugin_options
from prefkit.config import reader as recipe
from prefkit.generate.requests import read_requests
from prefkit.score.core import make_scorer
from prefkit.tiny.scene import Scene, render
from prefkit.train.online import checks
from prefkit.train.run import check_settings
from prefkit.types import Candidate

FOLDER = Path(__file__).parents[3] / "pipelines" / "online"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_read_and_could_start(path):
    found = recipe.read(path)
    assert f"prefkit train -r pipelines/online/{path.name}" in path.read_text()
    for name, config in found.train.items():
        check_settings(name, config)
        objective = plugin_options.make("objective", config.objective.use, config.objective.options)
        compatibility.check("train", name, found, objective=objective)
        checks.check_settings(name, config.online)
        named = {*config.online.rewards, *config.online.watch}
        assert named <= found.score.keys() and (config.online.pair or "widest") in {"widest", *found.pair}


@pytest.mark.parametrize(("name", "count"), [("animals", 45), ("animal_activities", 135), ("imagenet_animals", 398)])
def test_prompt_sets_have_the_size_of_the_papers(name, count):
    from prefkit.config import Requests

    prompts = [r.prompt for r in read_requests(Requests(source=str(FOLDER / "prompts" / f"{name}.txt")))]
    assert len(set(prompts)) == count
    assert all(prompt.startswith(("a ", "an ")) for prompt in prompts)


def test_the_garments_box_holds_it_and_its_colour_is_that_of_the_wardrobe():
    """pipelines/online/garment.py on renders: its box against the garment's own pixels, its value against the colour."""
    scorer = make_scorer(f"{FOLDER}/garment.py:Garment", {})
    for item, seed in (("dress", 1), ("handbag", 2), ("umbrella", 3)):
        pictures = [render(Scene(item, colour, "grey", "plain"), seed) for colour in ("red", "blue")]
        red, blue = scorer.score([Candidate("c", "r", 0, 0, decoded=picture) for picture in pictures])
        assert red.value > 0.5 > 0.2 > blue.value
        changed = np.abs(np.subtract(*(np.asarray(p, np.int16) for p in pictures))).max(-1) > 40
        columns, rows = changed.any(0).nonzero()[0], changed.any(1).nonzero()[0]
        truth = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        box = [64 * red.aspects[f"box_{side}"] for side in ("left", "top", "right", "bottom")]
        assert np.abs(np.subtract(box, truth)).max() <= 6, (item, box, truth)
    (nothing,) = scorer.score([Candidate("c", "r", 0, 0, decoded=Image.new("RGB", (64, 64), "navy"))])
    assert nothing.value is None and nothing.error
