"""The wheel holds what a user needs away from a checkout, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT = 28 * 2**20  # bytes
#: folder of the wheel -> folder of the repository
PLACES = {"prefkit/pipelines/": "pipelines/", "prefkit/datasets_cards/": "datasets_cards/"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_recipes_weights_and_pages(names):
    for recipe in (ROOT / "pipelines").glob("*.yaml"):
        assert f"prefkit/pipelines/{recipe.name}" in names
    for path in ("py.typed", "report/style.css", "tiny/atlas.webp", "tiny/NOTICE", "tiny/history/history.csv"):
        assert f"prefkit/{path}" in names
    assert {"prefkit/tiny/sd/model_index.json", "prefkit/tiny/sd/unet/diffusion_pytorch_model.safetensors"} <= names
    assert {f"prefkit/datasets_cards/{name}.md.j2" for name in ("card", "dataset", "model")} <= names
    assert "prefkit/tiny/clip/open_clip_model.safetensors" in names


def test_the_wheel_holds_nothing_else(wheel, names):
    own = {name for name in names if ".dist-info/" not in name}
    assert all(name.startswith("prefkit/") for name in own) and wheel.stat().st_size < LIMIT
    assert not [name for name in own if name.endswith((".pt", ".npz", ".pyc")) and name != "prefkit/mesh/body.npz"]
    if not (ROOT / ".git").exists():
        return
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]  # without results and caches
    known = set(subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines())
    for inside, outside in PLACES.items():
        own = {name.replace(inside, outside, 1) for name in own}
    assert own <= known, sorted(own - known)


def test_the_metadata_names_version_licence_and_python(wheel):
    given = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    with zipfile.ZipFile(wheel) as archive:
        folder = f"prefkit-{given['version']}.dist-info"
        found = Parser().parsestr(archive.read(f"{folder}/METADATA").decode())
        assert f"{folder}/licenses/LICENSE" in archive.namelist()
    assert found["Version"] == given["version"] and found["License-Expression"] == "Apache-2.0"
    assert found["Requires-Python"] == ">=3.11" and found["Description-Content-Type"] == "text/markdown"
    assert f"version: {given['version']}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{given['version']}]" in (ROOT / "CHANGELOG.md").read_text()
