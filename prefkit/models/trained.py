"""A result of training as a model block again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from prefkit.config import Model
from prefkit.errors import UsageError
from prefkit.models.load import ADAPTER_FILE


def trained_model(store_folder: str | Path, model: Model, name: str) -> Model:
    """What train/<name>/final of a run is: the base with the exported adapter, or the new pipeline folder.

    model: the block that the training started from. An exported adapter holds the start's adapters too, so it takes
    their place. Raises UsageError where there is no result (yet).
    """
    final = Path(store_folder) / "train" / name / "final"
    if (final / ADAPTER_FILE).is_file():
        return replace(model, adapters={str(final): 1.0})
    if (final / "model_index.json").is_file():
        return replace(model, base=str(final), revision=None, adapters={}, config=None)
    known = sorted(path.parent.name for path in final.parent.parent.glob("*/final"))
    raise UsageError(
        f"train/{name} of {store_folder} has no result (results: {', '.join(known) or 'none'}). "
        f"Run `prefkit train` for it, or let it finish."
    )
