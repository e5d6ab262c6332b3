"""Reuse the base model's images in offline rounds, whose evaluations have the same base, seeds and requests."""

from __future__ import annotations

import shutil
from pathlib import Path

from prefkit.config import Recipe
from prefkit.evaluate.sets import is_base
from prefkit.store import Store
from prefkit.store.folders import whole_folder


def copy_base(earlier: Store, store: Store, recipe: Recipe) -> None:
    """Copy the base model's images and scores from an earlier round's evaluations, unless `store` has them.

    The copied tables keep the fingerprints of their settings, so changed settings are detected as in any other table.
    """
    for name, cfg in recipe.eval.items():
        if not (earlier.eval(name) / "result.json").exists():
            continue
        with store.lock(f"eval/{name}"):
            for source in sorted(earlier.eval(name).glob("*/*/run.json")):
                place = source.parent.relative_to(earlier.folder)
                model = source.parent.name
                if (model == "base" or (is_base(model) and model not in (cfg.models or ()))) and not (
                    store.folder / place
                ).exists():
                    _copy(source.parent, store.folder / place)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(target, manifest=False) as temporary:
        shutil.copytree(source, temporary, ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True)
