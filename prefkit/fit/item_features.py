"""Where the visual features of a catalogue come from: images through an encoder, or an array of the user's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.distributed import device_of
from prefkit.errors import UsageError
from prefkit.fit.tables import embed, files_digest, image_files, named_files, read_table
from prefkit.paths import find_file, nfc
from prefkit.score.embed.vbpr import Scaling
from prefkit.tables import id_text, read, user_path
from prefkit.tables.files import text_lines

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor


@dataclass
class Source:
    """`items` in the order of the features' rows, and either image files or an array [N, D]."""

    items: list[str]
    files: list[Path] | None = None
    array: Tensor | None = None

    @classmethod
    def find(cls, options: Any, interactions: pd.DataFrame) -> Source:
        """Raises UsageError for items of the interactions that have no image or no features."""
        wanted = sorted(set(interactions["item"].astype(str)))
        if options.images:
            found = image_files(user_path(options.images, "vbpr.images"), wanted, "vbpr.images")
            return cls(wanted, files=list(found.values()))
        if options.items:
            table = read_table("vbpr.items", options.items, ("item", "image"), ids=("item",))
            files = dict(zip(table["item"], named_files("vbpr.items", options.items, table["image"])))
            _all_there("vbpr.items", options.items, wanted, files)
            return cls(list(files), files=list(files.values()))
        items, array = _read_features(user_path(options.features, "vbpr.features"))
        _all_there("vbpr.features", options.features, wanted, items)
        return cls(items, array=array)

    def digest(self) -> str:
        from prefkit.types import digest

        if self.files is not None:
            return digest(self.items, files_digest(self.files))
        import hashlib

        assert self.array is not None
        return digest(self.items, hashlib.sha256(self.array.numpy().tobytes()).hexdigest())

    def scaled(self, encoder: Any, how: str) -> tuple[Scaling, Tensor]:
        """The scaling, also for images to come, and the scaled features [N, D]."""
        import torch

        raw = self.array if self.array is not None else embed(encoder, self.files or [], device_of(None), False)
        shift, factor = torch.zeros(raw.shape[1]), 1.0
        if how == "max":
            factor = float(raw.abs().max())
        elif how == "standard":
            shift, factor = raw.mean(0), float(raw.std(0).pow(2).mean().sqrt())
        if not factor > 0:
            raise UsageError("vbpr: the features are all the same; nothing can be learned from them.")
        scaling = Scaling(how == "unit", shift, factor)
        return scaling, scaling(raw).contiguous()


def _read_features(path: Path) -> tuple[list[str], Tensor]:
    import numpy as np
    import torch

    try:
        if path.suffix.lower() == ".parquet":
            items, array = _rows(path)
        else:
            array = _array(path)
            ids = find_file(path.with_suffix(".txt"))
            items = [nfc(line.rstrip("\r\n")) for line in text_lines(ids, f"vbpr.features: {ids}")]
    except (OSError, ValueError) as error:
        raise UsageError(f"vbpr.features: {path} could not be read: {' '.join(str(error).split())[:200]}.") from error
    if array.ndim != 2 or len(array) != len(items) or len(set(items)) != len(items):
        raise UsageError(
            f"vbpr.features: {path} is {list(array.shape)} for {len(items)} ids ({len(set(items))} different); one row an "
            "item is needed, and each item once."
        )
    if not np.isfinite(array).all():
        raise UsageError(f"vbpr.features: {path} holds values that are not finite.")
    return items, torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _rows(path: Path) -> tuple[list[str], Any]:
    """Ids and [N, D] float32 of a table, which is never in memory as Python's numbers. Raises UsageError naming the row."""
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
            raise UsageError(f"{where} has {arrays[-1].size} features, the first row {arrays[0].size}.")
        items.append(id_text(values["item"]))
    return items, np.stack(arrays) if arrays else np.zeros((0, 0), np.float32)


def _array(path: Path) -> Any:
    import numpy as np

    if path.suffix.lower() == ".npy":
        return np.load(path, allow_pickle=False)
    if path.suffix.lower() != ".safetensors":
        raise ValueError("it is no .npy, .safetensors or .parquet")
    from safetensors.numpy import load_file

    tensors = load_file(path)
    if len(tensors) != 1:
        raise ValueError(f"it holds {len(tensors)} tensors; one is needed")
    return next(iter(tensors.values()))


def _all_there(name: str, path: str, wanted: list[str], have: Any) -> None:
    lacking = sorted(set(wanted) - set(have))
    if lacking:
        raise UsageError(
            f"{name}: {path} has no row for {len(lacking)} items of the interactions, such as {lacking[0]}."
        )
