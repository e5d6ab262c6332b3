"""A result of training as a model block again, and what it was trained on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefkit.config import Model
from prefkit.errors import NotYet, UsageError
from prefkit.models.load.pipeline import ADAPTER_FILE
from prefkit.models.load.revision import base_revision
from prefkit.store.files import read_json, write_json
from prefkit.types import caption_key, digest

TRAINED_ON = "trained_on.json"


def trained_model(store_folder: str | Path, model: Model, name: str) -> Model:
    """What train/<name>/final of a run is: the base with the exported adapter, or the new pipeline folder.

    model: the block that the training started from. An exported adapter holds the start's adapters too, so it takes
    their place. Raises UsageError where there is no result (yet), or where it was trained from another base.
    """
    folder = Path(store_folder) / "train" / name
    final = folder / "final"
    if (final / ADAPTER_FILE).is_file():
        _check_base(folder, model)
        return replace(model, adapters={str(final): 1.0})
    if (final / "model_index.json").is_file():
        if (folder / "spec.json").is_file():  # a pipeline stands on its own, so one put here by hand will do
            _check_base(folder, model)
        return replace(model, base=str(final), revision=None, adapters={}, config=None)
    known = sorted(path.parent.name for path in folder.parent.glob("*/final"))
    raise NotYet(
        f"train/{name} of {store_folder} has no result (results: {', '.join(known) or 'none'}). Run `prefkit train` for it, "
        "or let it finish.",
        "train",
        [name],
    )


def _check_base(folder: Path, model: Model) -> None:
    """An adapter says nothing about another base, and a tuned model is compared with the base that it came from."""
    start = read_json(folder / "spec.json")["model"]
    then, now = {k: start[k] for k in ("base", "config", "quantize") if k in start}, base_revision(model)
    if then != now:
        raise UsageError(
            f"{folder} was trained from another model than model.base {model.base} (its weights were {then}, now they are "
            f"{now}). Set model as it was in that training, or train again from this model under another name."
        )


def caption_hash(caption: str) -> str:
    """As in trained_on: equal for prompts that count as one."""
    return digest(caption_key(caption))


def write_trained_on(
    folder: Path, captions: Collection[str], scorers: Collection[str] | None, model: Model, base: str
) -> None:
    """Write `folder`/trained_on.json. What the model's own adapters were trained on, where they say so, counts too.

    scorers: aliases of the scores that the pairs were chosen by, None where nothing is known of them.
    """
    hashes, aliases = {caption_hash(caption) for caption in captions}, None if scorers is None else set(scorers)
    for start in (model.base, *model.adapters):
        before = trained_on(Path(start).expanduser().parent)
        if before is not None:
            hashes |= set(before["captions"])
            aliases = None if aliases is None or before["scorers"] is None else aliases | set(before["scorers"])
    found = {"captions": sorted(hashes), "scorers": None if aliases is None else sorted(aliases), "base": base}
    write_json(folder / TRAINED_ON, found)


def trained_on(folder: str | Path) -> dict[str, Any] | None:
    """What train/<name> was trained on, None where it does not say (made elsewhere, or before this was kept).

    captions: caption_hash of each; scorers: aliases that the pairs were chosen by, None where the pairs had no
    score_0_<alias> columns; base: revision of the model that it started from.
    """
    path = Path(folder) / TRAINED_ON
    return read_json(path) if path.is_file() else None
