"""Relative paths in a recipe start at the recipe, wherever a command runs."""

from __future__ import annotations

import os
import shutil

import drawing
import pytest
import yaml

from prefkit.config.resolve import resolve
from prefkit.store import Store
from prefkit.store.table import spelled_as

TEXT = """
run: runs/x
requests: {source: prompts.txt, test_share: 0.25}
model: {base: models/m, adapters: {lora.safetensors: 0.5, owner/adapter: 1.0}}
generate: {own: {use: "draw.py:draw", n: 2}, other: {use: diffusers, model: dpo}}
score: {taste: {use: "taste.py:muted"}, clip: {use: clip, model: tiny}}
pair: {main: {k: 1}}
eval: {held_out: {real: photos, sets: {new: {source: missing.csv}}}}
"""


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    for place in ("models/m", "photos", "dpo"):
        (folder / place).mkdir(parents=True)
    shutil.copy(drawing.__file__, folder / "draw.py")
    (folder / "taste.py").write_text(
        "def muted(images, prompts):\n    return [float(i.getpixel((0, 0))[0]) for i in images]\n"
    )
    for place in (folder, tmp_path):
        (place / "prompts.txt").write_text("a hat\na red boot\na coat\na blue dress\n")
    (folder / "lora.safetensors").touch()
    (folder / "recipe.yaml").write_text(TEXT)
    return folder


def paths(recipe):
    scores = [entry.use for entry in recipe.score.values()]
    held_out = recipe.eval["held_out"]
    return [recipe.run, recipe.requests.source, recipe.model.base, *recipe.model.adapters, recipe.generate["own"].use,
            *scores, held_out.real, held_out.sets["new"].source]  # fmt: skip


def test_paths_start_at_the_recipe_and_names_stay_names(project, monkeypatch):
    monkeypatch.chdir(project)
    here = paths(resolve(None, "recipe.yaml", "run"))
    assert here == ["runs/x", "prompts.txt", "models/m", "lora.safetensors", "owner/adapter", "draw.py:draw",
                    "taste.py:muted", "clip", "photos", "missing.csv"]  # fmt: skip
    monkeypatch.chdir(project.parent)
    found = resolve(None, "project/recipe.yaml", "run")
    names = ("owner/adapter", "clip")
    assert paths(found) == [path if path in names else f"project/{path}" for path in here]
    assert found.generate["other"].model == "dpo" and found.score["clip"].options == {"model": "tiny"}
    monkeypatch.chdir(project / "dpo")
    found = paths(resolve(None, "../recipe.yaml", "run"))
    assert found == [path if path in names else str(project / path) for path in here]


def test_a_run_is_continued_from_any_folder_and_after_a_move(project, monkeypatch, cli):
    monkeypatch.chdir(project)
    keys = ("run:", "requests:", "generate:", "score:", "pair:")
    text = "\n".join(line for line in TEXT.splitlines() if line.startswith(keys))
    text = text.replace("use: diffusers, model: dpo", "use: 'draw.py:draw', n: 1, seed: 7").replace(
        ", clip: {use: clip, model: tiny}", ""
    )
    (project / "recipe.yaml").write_text(text)
    assert cli("run", "-r", "recipe.yaml")[0] == 0
    made = {name: Store("runs/x").candidates(name).ids() for name in ("own", "other")}
    stored = yaml.safe_load((project / "runs/x/recipe.yaml").read_text())
    assert (
        stored["requests"]["source"] == "../../prompts.txt"
        and stored["score"]["taste"]["use"] == "../../taste.py:muted"
    )
    moved = project.rename(project.parent / "moved")
    for place, run in (
        (moved.parent, "moved/runs/x"),
        (moved / "photos", str(moved / "runs/x")),
        (moved / "runs/x", "."),
    ):
        monkeypatch.chdir(place)
        for verb in ("generate", "score"):
            code, _, err = cli(verb, run)
            assert code == 0, err
        assert {name: Store(run).candidates(name).ids() for name in made} == made
        assert cli("run", "-r", os.path.join(run, "recipe.yaml"))[0] == 0
    assert not list(moved.rglob("runs/x/runs")) and len(list(moved.rglob("run.json"))) == 1


def test_a_run_of_an_earlier_version_keeps_paths_from_the_working_directory(project, monkeypatch):
    monkeypatch.chdir(project)
    Store.create("runs/x")
    (project / "runs/x/recipe.yaml").write_text(TEXT)
    found = resolve("runs/x", None, "run")
    assert found.requests.source == "prompts.txt" and found.generate["own"].use == "draw.py:draw"


def test_a_missing_file_is_named_where_the_recipe_wants_it(project, monkeypatch, cli):
    monkeypatch.chdir(project.parent)
    (project / "prompts.txt").unlink()  # one of this name lies in the working directory
    code, _, err = cli("generate", "-r", "project/recipe.yaml", "--name", "own")
    assert code == 2 and "project/prompts.txt does not exist" in err
    assert not (project / "runs/x").exists()


def test_the_spelling_of_a_path_is_no_setting(project, monkeypatch):
    monkeypatch.chdir(project.parent)
    stored = {"use": "taste.py:muted", "settings": {"base": "../project/models/m", "steps": 3}}
    wanted = {"use": "project/taste.py:muted", "settings": {"base": "project/models/m", "steps": 4}}
    assert spelled_as(stored, wanted) == stored | {"settings": stored["settings"] | {"steps": 4}}
    assert spelled_as({"use": "other.py:muted"}, {"use": "project/taste.py:muted"}) == {"use": "project/taste.py:muted"}
    assert spelled_as({"text": "b"}, {"text": "a/b"}) == {"text": "a/b"}  # no such file


def test_a_recipe_next_to_a_runs_tables_keeps_its_own_run(tmp_path):
    """Only RUN/recipe.yaml is the recipe of the run folder that it is in."""
    store = Store.create(tmp_path / "a")
    (store.folder / "variant.yaml").write_text("run: ../b\nmodel: {base: tiny}\n")
    assert os.path.realpath(resolve(None, str(store.folder / "variant.yaml"), "run").run) == str(tmp_path / "b")
