"""Shipped recipes, the files of `pipelines/`, by name: `prefkit run demo`."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parents[1]
#: of an installed package, and of a checkout
FOLDERS = (HERE / "pipelines", HERE.parent / "pipelines")


def shipped_recipes() -> dict[str, Path]:
    """Name -> file."""
    folder = next((folder for folder in FOLDERS if folder.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))} if folder else {}
