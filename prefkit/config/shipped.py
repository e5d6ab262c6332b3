"""The shipped recipes: files in `pipelines/`, which commands find by name, as in `prefkit run demo`."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parents[1]
#: recipe folder of an installed package, and of a git checkout
FOLDERS = (HERE / "pipelines", HERE.parent / "pipelines")


def shipped_recipes() -> dict[str, Path]:
    """Return the files of the shipped recipes by name."""
    folder = next((folder for folder in FOLDERS if folder.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))} if folder else {}
