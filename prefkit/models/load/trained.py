"""Use the result of a training as the recipe's `model`, and record what it was trained on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefkit.config import Model
from prefkit.errors import NotYet, UsageError
from prefkit.models.load.folder import INDEX
from prefkit.models.load.revision import base_revision
from prefkit.models.lora.files import ADAPTER_FILE
from prefkit.store.files import read_json, write_json
from prefkit.types import caption_key, digest

TRAINED_ON = "trained_on.json"
WEIGHTS = ("base", "config", "quantize")  # the keys of base_revision that an adapter depends on


def trained_model(store_folder: str | Path, model: Model, name: str) -> Model:
    """Return the model in a run's train/<name>/final: the base with the exported adapter, or the new pipeline folder.

    model: the recipe's `model`, from which the training started. An exported adapter includes this model's adapters, so
    it replaces them. Raises UsageError if the training has no result yet, or started from a different base.
    """
    folder = Path(store_folder) / "train" / name
    final = folder / "final"
    if (final / ADAPTER_FILE).is_file():
        _check_base(folder, model)
        return replace(model, adapters={str(final): 1.0})
    if (final / INDEX).is_file():
        if (folder / "spec.json").is_file():  # a pipeline needs no base, so one copied here by hand will do
            _check_base(folder, model)
        return replace(model, base=str(final), revision=None, adapters={}, config=None)
    known = sorted(path.parent.name for path in folder.parent.glob("*/final"))
    raise NotYet(
        f"train/{name} of {store_folder} has no result (existing results: {', '.join(known) or 'none'}). Run "
        "`prefkit train`, or let it finish.",
        "train",
        [name],
    )


def _check_base(folder: Path, model: Model) -> None:
    """Raise UsageError if the training had another base: its adapter would not fit, and comparisons would mislead."""
    start = read_json(folder / "spec.json")["model"]
    then, now = ({k: v for k, v in of.items() if k in WEIGHTS} for of in (start, base_revision(model)))
    if then != now:
        raise UsageError(
            f"{folder} was trained from another model than model.base {model.base} (weights then {then}, now {now}). "
            "Set model as it was in that training, or train again from this model under another name."
        )


def caption_hash(caption: str) -> str:
    """Return the hash used in trained_on.json, which is equal for prompts that count as the same."""
    return digest(caption_key(caption))


def write_trained_on(
    folder: Path, captions: Collection[str], scorers: Collection[str] | None, model: Model, base: str
) -> None:
    """Write `folder`/trained_on.json, merged with the records of the model that the training started from.

    scorers: names of the scores by which the pairs were chosen, None if unknown.
    """
    hashes, names = {caption_hash(caption) for caption in captions}, None if scorers is None else set(scorers)
    for start in (model.base, *model.adapters):
        before = trained_on(Path(start).expanduser().parent)
        if before is not None:
            hashes |= set(before["captions"])
            names = None if names is None or before["scorers"] is None else names | set(before["scorers"])
    record = {"captions": sorted(hashes), "scorers": None if names is None else sorted(names), "base": base}
    write_json(folder / TRAINED_ON, record)


def trained_on(folder: str | Path) -> dict[str, Any] | None:
    """Return the record of what train/<name> was trained on, None without one (trained elsewhere or by an old version).

    captions: each caption's caption_hash; scorers: names of the scores by which the pairs were chosen, None if the
    pairs had no score_0_<name> columns; base: revision of the model that the training started from.
    """
    path = Path(folder) / TRAINED_ON
    return read_json(path) if path.is_file() else None
