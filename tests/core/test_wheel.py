"""The wheel holds what a user needs away from a checkout."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_wheel_holds_recipes_weights_and_pages(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    for recipe in (ROOT / "pipelines").glob("*.yaml"):
        assert f"prefkit/pipelines/{recipe.name}" in names
    for path in ("py.typed", "report/style.css", "tiny/atlas.webp", "tiny/NOTICE", "tiny/history/history.csv"):
        assert f"prefkit/{path}" in names
    assert {"prefkit/tiny/sd/model_index.json", "prefkit/tiny/sd/unet/diffusion_pytorch_model.safetensors"} <= names
    assert {f"prefkit/datasets_cards/{name}.md.j2" for name in ("card", "dataset", "model")} <= names
    assert "prefkit/tiny/clip/open_clip_model.safetensors" in names
    assert not [name for name in names if name.endswith((".pt", ".npz", ".pyc")) and name != "prefkit/mesh/body.npz"]
