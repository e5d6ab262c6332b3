"""Cache of the frozen reference's errors on disk, so that a sweep over settings computes them only once.

With one train.seed, visit n of a pair has the same draw (t, noise) under any beta, learning rate or objective. The
first recipe entry to be trained stores the reference's errors. Later entries with the same seed look them up, which
saves one forward pass per step. Results are the same as without the cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prefkit.errors import DamagedError
from prefkit.store.tensors import load_tensors, save_tensors
from prefkit.train.data.batches import Batch, PairData
from prefkit.train.data.cache import part_path, rename_damaged

PART_ROWS = 100_000


class ReferenceErrorCache:
    """Cache of the reference's errors: keys [N] int64 and, per head, errors [N] float32.

    With one head, a sample takes 12 bytes. A key is a 64-bit hash of the sample's latents, time, noise, loss weights
    and condition key. The folder's name depends on the model, adapters, call, precision and seed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys, self.errors = np.empty(0, np.int64), dict[str, np.ndarray]()
        self.unsaved: list[tuple[np.ndarray, dict[str, Tensor]]] = []
        for path in sorted(folder.glob("part-*.safetensors")):
            try:
                part, _ = load_tensors(path, "")
            except DamagedError as error:
                rename_damaged(path, str(error))
                continue
            self._merge({name: tensor.numpy() for name, tensor in part.items()})

    def _merge(self, part: dict[str, np.ndarray]) -> None:
        heads = sorted(part.keys() - {"keys"})
        keys, first = np.unique(np.concatenate([self.keys, part["keys"]]), return_index=True)
        joined = {head: np.concatenate([self.errors.get(head, np.empty(0, np.float32)), part[head]]) for head in heads}
        self.keys, self.errors = keys, {head: values[first] for head, values in joined.items()}

    def look_up(self, batch: Batch, data: PairData) -> None:
        """Set `batch.keys` and, if all samples are cached, `batch.reference`."""
        batch.keys = keys_of(batch, data)
        index = np.searchsorted(self.keys, batch.keys)
        if len(self.keys) and bool((self.keys[np.minimum(index, len(self.keys) - 1)] == batch.keys).all()):
            batch.reference = {head: torch.from_numpy(values[index]) for head, values in self.errors.items()}

    def add(self, batch: Batch, errors: Mapping[str, Tensor]) -> None:
        """Add the reference's errors {head: [B]}, which stay on the GPU until `flush` writes them."""
        assert batch.keys is not None
        self.unsaved.append((batch.keys, dict(errors)))
        if len(batch.keys) * len(self.unsaved) >= PART_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write the errors that were added since the last flush to a new file."""
        if not self.unsaved:
            return
        part = {"keys": torch.from_numpy(np.concatenate([keys for keys, _ in self.unsaved]))}
        for head in self.unsaved[0][1]:
            part[head] = torch.cat([errors[head] for _, errors in self.unsaved]).float().cpu()
        self.unsaved = []
        save_tensors(part_path(self.folder), part)


def keys_of(batch: Batch, data: PairData) -> np.ndarray:
    """Return the cache keys of the batch's samples, [B] int64."""
    conditions = [data.condition_key(group) for group in batch.members]
    inputs = [batch.latents, batch.draw.time, batch.draw.noise, batch.weight]
    arrays = [tensor.contiguous().numpy() for tensor in inputs if tensor is not None]
    keys = np.empty(len(batch.latents), np.int64)
    for sample in range(len(keys)):
        hashed = hashlib.blake2b(conditions[sample % len(conditions)].encode(), digest_size=8)
        for array in arrays:
            hashed.update(f"{array.dtype}{array.shape[1:]}".encode())
            hashed.update(array[sample].tobytes())
        keys[sample] = int.from_bytes(hashed.digest(), "little", signed=True)
    return keys
