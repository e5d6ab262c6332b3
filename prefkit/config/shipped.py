"""Find the shipped recipes, files in `pipelines/`, by name, as in `prefkit run demo`."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parents[1]
#: the recipe folder in an installed package, and in a git checkout
FOLDERS = (HERE / "pipelines", HERE.parent / "pipelines")


def shipped_recipes() -> dict[str, Path]:
    """Return {name: file} of the shipped recipes."""
    folder = next((folder for folder in FOLDERS if folder.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))} if folder else {}
