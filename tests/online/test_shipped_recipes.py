from __future__ import annotations

from pathlib import Path

import pytest

from prefkit import recipe, registry
from prefkit.generate.requests import read_requests
from prefkit.train.online import guards
from prefkit.train.run import check_settings

FOLDER = Path(__file__).parents[2] / "pipelines" / "online"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_read_and_could_start(path):
    found = recipe.read(path)
    assert f"prefkit train -r pipelines/online/{path.name}" in path.read_text()
    for name, config in found.train.items():
        check_settings(name, config)
        objective = registry.make("objective", config.objective.use, config.objective.options)
        guards.check(name, config, config.online, objective)
        named = {*config.online.rewards, *config.online.watch}
        assert named <= found.score.keys() and (config.online.pair or "widest") in {"widest", *found.pair}


@pytest.mark.parametrize(("name", "count"), [("animals", 45), ("animal_activities", 135), ("imagenet_animals", 398)])
def test_prompt_sets_have_the_size_of_the_papers(name, count):
    from prefkit.config import Requests

    prompts = [r.prompt for r in read_requests(Requests(source=str(FOLDER / "prompts" / f"{name}.txt")))]
    assert len(set(prompts)) == count
    assert all(prompt.startswith(("a ", "an ")) for prompt in prompts)
