"""The shipped recipes say how they are run, and README and docs name what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from prefkit.cli.main import VERBS
from prefkit.cli.reference import page
from prefkit.config import reader as recipe

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_reads_and_says_how_it_is_run(path):
    found = recipe.read(path)
    assert found.generate and found.score and found.pair
    lines = (f"prefkit run -r pipelines/{path.name}", f"prefkit run {path.stem}")
    assert any(line in path.read_text() for line in lines)


PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text() for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
}


@pytest.mark.parametrize("name", PAGES)
def test_every_recipe_in_a_page_reads(name, tmp_path):
    for number, text in enumerate(re.findall(r"```yaml\n(.*?)```", PAGES[name], re.S)):
        (tmp_path / f"{number}.yaml").write_text(text)
        assert recipe.read(tmp_path / f"{number}.yaml").run or "run:" not in text
    assert "```yaml" in README


def test_the_reference_page_is_that_of_the_code():
    assert PAGES["docs/recipe.md"] == "\n".join([*page(), ""]), "python -m prefkit.cli.reference > docs/recipe.md"


def test_the_pages_name_every_room_and_verb():
    rooms = {p.name for p in (ROOT / "prefkit").iterdir() if p.name != "__pycache__" and not p.name.startswith("_")}
    tree = PAGES["docs/architecture.md"]
    assert not [room for room in rooms if room.removesuffix(".py") not in tree]
    assert not [verb for verb in VERBS if f"prefkit {verb}" not in README]


def test_the_readme_is_short():
    assert len(README.encode()) <= 12_000 and len(README.splitlines()) <= 220


def anchors(text):
    """Return the anchors that a repository page makes of the headings of `text`."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", PAGES)
def test_every_link_in_a_page_leads_to_a_file_and_a_heading(name):
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[name]):
        if link.startswith("http"):
            continue
        where, _, anchor = link.partition("#")
        path = (ROOT / name).parent / where if where else ROOT / name
        assert path.exists(), f"{name}: {link}"
        assert not anchor or anchor in anchors(path.read_text()), f"{name}: {link}"


def test_every_flag_of_a_prefkit_line_in_a_page_exists():
    from prefkit import config

    known = {"recipe", "json", "quiet", "dry-run", "limit", "name", "controls", "request", "filter", "help", "use", "k"}
    known |= {
        "check",
        "as",
        "to",
        "vote",
        "decisions",
        "map",
        "values",
        "run",
        "fast",
        "shard",
        "engine",
        "serve",
    }  # of some verbs
    known |= {"beta"}  # an option of an objective, which needs no prefix
    known |= {
        "interactions",
        "images",
        "outfits",
        "encoder",
        "items",
        "num_processes",
        "out",
        "library",
    }  # of fit, and the launcher's
    known |= {"test_splits", "votes", "by", "redo", "subject", "run", "error", "scores", "pretrained", "train", "pairs"}
    for kind in ("Model", "Requests", "Generate", "Score", "Compare", "Pair", "Online", "Train", "Eval"):
        known |= set(getattr(config, kind).__dataclass_fields__)
    lines = [
        line
        for text in PAGES.values()
        for line in text.splitlines()
        if line.startswith(("prefkit ", "accelerate launch"))
    ]
    flags = {flag.rsplit(".", 1)[-1] for line in lines for flag in re.findall(r"--([\w.-]+)", line)}
    assert lines and flags <= known, flags - known
