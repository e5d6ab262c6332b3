"""The shipped recipes and the README tell the truth about the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from prefkit.cli.main import VERBS
from prefkit.config import reader as recipe

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_reads_and_says_how_it_is_run(path):
    found = recipe.read(path)
    assert found.generate and found.score and found.pair
    lines = (f"prefkit run -r pipelines/{path.name}", f"prefkit run {path.stem}")
    assert any(line in path.read_text() for line in lines)


def test_the_recipe_in_the_readme_reads(tmp_path):
    for number, text in enumerate(re.findall(r"```yaml\n(.*?)```", README, re.S)):
        (tmp_path / f"{number}.yaml").write_text(text)
        assert recipe.read(tmp_path / f"{number}.yaml").run
    assert "```yaml" in README


def test_the_readme_names_every_room_and_verb():
    rooms = {p.name for p in (ROOT / "prefkit").iterdir() if p.name != "__pycache__" and not p.name.startswith("_")}
    tree = README.split("## The tree")[1]
    assert not [room for room in rooms if room.removesuffix(".py") not in tree]
    assert not [verb for verb in VERBS if f"prefkit {verb}" not in README]


def test_every_flag_of_a_prefkit_line_in_the_readme_exists():
    from prefkit import config

    known = {"recipe", "json", "quiet", "dry-run", "limit", "name", "controls", "request", "filter", "help", "use", "k"}
    known |= {"check", "as", "to", "vote", "decisions"}  # of score --check, import and export, push, report
    known |= {"beta"}  # an option of an objective, which needs no prefix
    for kind in ("Model", "Requests", "Generate", "Score", "Compare", "Pair", "Online", "Train", "Eval"):
        known |= set(getattr(config, kind).__dataclass_fields__)
    lines = [line for line in README.splitlines() if line.startswith(("prefkit ", "accelerate launch"))]
    flags = {flag.rsplit(".", 1)[-1] for line in lines for flag in re.findall(r"--([\w.-]+)", line)}
    assert lines and flags - {"num_processes"} <= known
