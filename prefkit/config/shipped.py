"""Recipes that come with the package, by name: `prefkit run demo`. They are the files of `pipelines/`."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parents[1]
#: in an installed package, and in a checkout
FOLDERS = (HERE / "pipelines", HERE.parent / "pipelines")


def shipped_recipes() -> dict[str, Path]:
    """Name -> file."""
    folder = next((folder for folder in FOLDERS if folder.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))} if folder else {}
