"""Load the result of `prefkit train` as a model, and record what it was trained on."""

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
WEIGHTS = ("base", "config", "quantize", "variant")  # keys in base_revision's result that an adapter depends on


def trained_model(store_folder: str | Path, model: Model, name: str) -> Model:
    """Return the model in a run's train/<name>/final: `model` with the exported adapter, or a pipeline folder.

    model: the recipe's `model`, from which the training started. The exported adapter includes the adapters in `model`,
    so it replaces them. Raises UsageError if the training has no result yet, or started from another base.
    """
    folder = Path(store_folder) / "train" / name
    final = folder / "final"
    if (final / ADAPTER_FILE).is_file():
        _check_base(folder, model)
        return replace(model, adapters={str(final): 1.0})
    if (final / INDEX).is_file():
        if (folder / "spec.json").is_file():  # no spec.json: the user copied a pipeline here
            _check_base(folder, model)
        return replace(model, base=str(final), revision=None, adapters={}, config=None)
    known = sorted(path.parent.name for path in folder.parent.glob("*/final"))
    raise NotYet(
        f"train/{name} in {store_folder} has no result yet (existing results: {', '.join(known) or 'none'}). Run "
        "`prefkit train`, or let it finish.",
        "train",
        [name],
    )


def _check_base(folder: Path, model: Model) -> None:
    """Raise UsageError if the training started from another base, because its adapter would not fit."""
    start = read_json(folder / "spec.json")["model"]
    then, now = ({k: v for k, v in of.items() if k in WEIGHTS} for of in (start, base_revision(model)))
    if then != now:
        raise UsageError(
            f"{folder} was trained from another model than model.base {model.base} (weights then {then}, now {now}). "
            "Set `model` in the recipe as it was for that training, or train the current model under another name."
        )


def caption_hash(caption: str) -> str:
    """Return a caption's hash for trained_on.json. Captions that count as the same (caption_key) have equal hashes."""
    return digest(caption_key(caption))


def write_trained_on(
    folder: Path, captions: Collection[str], scorers: Collection[str] | None, model: Model, base: str
) -> None:
    """Write `folder`/trained_on.json, including what the initial model was trained on if that is recorded.

    scorers: names of the scores that chose the pairs, None if unknown.
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
    """Return what train/<name> was trained on, None if unknown (a model from elsewhere, or from an old version).

    captions: caption_hash of each caption; scorers: names of the scores that chose the pairs, None if the pairs have no
    score_0_<name> columns; base: revision of the initial model.
    """
    path = Path(folder) / TRAINED_ON
    return read_json(path) if path.is_file() else None
