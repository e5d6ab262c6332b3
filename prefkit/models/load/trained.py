"""A result of training as a model block, and the record of its training data."""

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
WEIGHTS = ("base", "config", "quantize")  # the parts of a revision that an adapter depends on


def trained_model(store_folder: str | Path, model: Model, name: str) -> Model:
    """The model in train/<name>/final of a run: the base with the exported adapter, or the new pipeline folder.

    model: the block that the training started from. An exported adapter includes the start's adapters, so it replaces
    them. Raises UsageError for a training without a result (yet), or from another base.
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
        f"train/{name} of {store_folder} has no result (results: {', '.join(known) or 'none'}). Run `prefkit train`, "
        "or let it finish.",
        "train",
        [name],
    )


def _check_base(folder: Path, model: Model) -> None:
    """Raise UsageError for training from another base: the adapter would not fit, and a comparison would mislead."""
    start = read_json(folder / "spec.json")["model"]
    then, now = ({k: v for k, v in of.items() if k in WEIGHTS} for of in (start, base_revision(model)))
    if then != now:
        raise UsageError(
            f"{folder} was trained from another model than model.base {model.base} (weights then {then}, now {now}). "
            "Set model as it was in that training, or train again from this model under another name."
        )


def caption_hash(caption: str) -> str:
    """The hash used in trained_on.json, equal for prompts that count as the same."""
    return digest(caption_key(caption))


def write_trained_on(
    folder: Path, captions: Collection[str], scorers: Collection[str] | None, model: Model, base: str
) -> None:
    """Write `folder`/trained_on.json, merged with the records of the model that the training started from.

    scorers: names of the scores that the pairs were chosen by, None if unknown.
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
    """The training data of train/<name>, None without a record (trained elsewhere, or by an older version).

    captions: caption_hash of each; scorers: names of the scores that the pairs were chosen by, None if the pairs had no
    score_0_<name> columns; base: revision of the model that the training started from.
    """
    path = Path(folder) / TRAINED_ON
    return read_json(path) if path.is_file() else None
