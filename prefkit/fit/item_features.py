"""Visual features of a catalogue's items: an array from a file, or embeddings of images."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.distributed import device_of
from prefkit.errors import UsageError
from prefkit.fit.tables import embed, files_digest, image_files, named_files, read_table
from prefkit.output import message
from prefkit.paths import find_file, nfc
from prefkit.score.embed.vbpr import Scaling
from prefkit.tables import id_text, read, user_path
from prefkit.tables.files import text_lines
from prefkit.types import digest

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor


@dataclass
class Source:
    """Source of the features: `items`, and in the same order either their image files or an array [N, D]."""

    items: list[str]
    files: list[Path] | None = None
    array: Tensor | None = None

    @classmethod
    def find(cls, options: Any, interactions: pd.DataFrame) -> Source:
        """Return the source that the options set. Raises UsageError for items without an image or features."""
        wanted = sorted(set(interactions["item"].astype(str)))
        if options.images:
            images = image_files(user_path(options.images, "vbpr.images"), wanted, "vbpr.images")
            return cls(wanted, files=list(images.values()))
        if options.items:
            table = read_table("vbpr.items", options.items, ("item", "image"), ids=("item",))
            files = dict(zip(table["item"], named_files("vbpr.items", options.items, table["image"])))
            _check_complete("vbpr.items", options.items, wanted, files)
            return cls(list(files), files=list(files.values()))
        items, array = _read_features(user_path(options.features, "vbpr.features"))
        _check_complete("vbpr.features", options.features, wanted, items)
        return cls(items, array=array)

    def digest(self) -> str:
        if self.files is not None:
            return digest(self.items, files_digest(self.files))
        assert self.array is not None
        return digest(self.items, hashlib.sha256(self.array.numpy().tobytes()).hexdigest())

    def scaled(self, encoder: Any, method: str) -> tuple[Scaling, Tensor]:
        """Return the scaling, which the scorer later applies to new images, and the scaled features [N, D]."""
        import torch

        raw = self.array if self.array is not None else embed(encoder, self.files or [], device_of(None), False)
        shift, factor = torch.zeros(raw.shape[1]), 1.0
        if method == "max":
            factor = float(raw.abs().max())
        elif method == "standard":
            shift, factor = raw.mean(0), float(raw.std(0).pow(2).mean().sqrt())
        if not factor > 0:
            raise UsageError("vbpr: the features of all items are equal, so nothing can be learned. Replace them.")
        scaling = Scaling(method == "unit", shift, factor)
        return scaling, scaling(raw).contiguous()


def _read_features(path: Path) -> tuple[list[str], Tensor]:
    import numpy as np
    import torch

    try:
        if path.suffix.lower() == ".parquet":
            items, array = _read_rows(path)
        else:
            array = _read_array(path)
            ids = find_file(path.with_suffix(".txt"))
            items = [nfc(line.rstrip("\r\n")) for line in text_lines(ids, f"vbpr.features: {ids}")]
    except (OSError, ValueError) as error:
        raise UsageError(f"vbpr.features: {path} could not be read: {message(str(error), 200)}.") from error
    if array.ndim != 2 or len(array) != len(items) or len(set(items)) != len(items):
        raise UsageError(
            f"vbpr.features: {path} has shape {list(array.shape)} for {len(items)} ids ({len(set(items))} distinct). "
            "It must have one row per id, and each id once."
        )
    if not np.isfinite(array).all():
        raise UsageError(f"vbpr.features: {path} contains values that are not finite (NaN or infinity). Replace them.")
    return items, torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _read_rows(path: Path) -> tuple[list[str], Any]:
    """Read ids and features [N, D] float32, row by row to save memory. Raises UsageError naming the row."""
    import numpy as np

    items, arrays = [], []
    for where, values, _ in read(path, ("item", "features"), shown=f"vbpr.features: {path}"):
        if values.get("item") is None or not isinstance(values.get("features"), list):
            raise UsageError(f"{where} needs an item and its features, a list of numbers.")
        try:
            arrays.append(np.asarray(values["features"], np.float32))
        except (TypeError, ValueError) as error:
            raise UsageError(f"{where}: the features are not a list of numbers.") from error
        if arrays[-1].shape != arrays[0].shape:
            raise UsageError(f"{where} has {arrays[-1].size} features, but the first row has {arrays[0].size}.")
        items.append(id_text(values["item"]))
    return items, np.stack(arrays) if arrays else np.zeros((0, 0), np.float32)


def _read_array(path: Path) -> Any:
    import numpy as np
    from safetensors.numpy import load_file

    if path.suffix.lower() == ".npy":
        return np.load(path, allow_pickle=False)
    if path.suffix.lower() != ".safetensors":
        raise ValueError("it is not a .npy, .safetensors or .parquet file")
    tensors = load_file(path)
    if len(tensors) != 1:
        raise ValueError(f"it contains {len(tensors)} tensors; it must contain one")
    return next(iter(tensors.values()))


def _check_complete(name: str, path: str, wanted: list[str], present: Collection[str]) -> None:
    missing = sorted(set(wanted) - set(present))
    if missing:
        raise UsageError(
            f"{name}: {path} has no row for {len(missing)} items of the interactions, such as {missing[0]}. Add rows."
        )
