"""Errors of the frozen reference, kept on disk by what entered the network: later trainings of a sweep find them there.

A pair's visit n has one draw (t, noise) for a seed, whatever beta, learning rate or objective. So trainings of one run
that differ in these and share train.seed ask the reference for the same numbers; those of another seed share none. The first computes them beside its policy and keeps them; the others
look them up, for one forward less a step. No draw is ever used again, so nothing about a training changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefkit.errors import DamagedError, UsageError
from prefkit.store.tensors import load_tensors, save_tensors
from prefkit.train.data.batches import Batch, PairData
from prefkit.train.data.cache import part_path, set_damaged_aside

PART_ROWS = 100_000


class ReferenceErrorCache:
    """Parts of keys [N] int64 and, by head, errors [N] float32; 12 bytes a sample for one head.

    A key is the first 64 bits of a hash over all that decides the error: latents, time, noise, weights and the key of
    the condition. The folder's name stands for the rest: model, adapters, call, precision, seed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys, self.errors = np.empty(0, np.int64), dict[str, np.ndarray]()
        self.waiting: list[tuple[np.ndarray, dict[str, Tensor]]] = []
        for path in sorted(folder.glob("part-*.safetensors")):
            try:
                part, _ = load_tensors(path, "")
            except DamagedError as error:
                set_damaged_aside(path, str(error))
                continue
            self._take({name: tensor.numpy() for name, tensor in part.items()})

    def _take(self, part: dict[str, np.ndarray]) -> None:
        heads = sorted(part.keys() - {"keys"})
        keys, first = np.unique(np.concatenate([self.keys, part["keys"]]), return_index=True)
        joined = {head: np.concatenate([self.errors.get(head, np.empty(0, np.float32)), part[head]]) for head in heads}
        self.keys, self.errors = keys, {head: values[first] for head, values in joined.items()}

    def look_up(self, batch: Batch, data: PairData) -> None:
        """Give a batch its keys and, where all its samples are known, the errors of its reference."""
        batch.keys = keys_of(batch, data)
        place = np.searchsorted(self.keys, batch.keys)
        if len(self.keys) and bool((self.keys[np.minimum(place, len(self.keys) - 1)] == batch.keys).all()):
            batch.reference = {head: torch.from_numpy(values[place]) for head, values in self.errors.items()}

    def add(self, batch: Batch, errors: Mapping[str, Tensor]) -> None:
        """Errors by head, [B]; written by `flush`, so that a GPU is not waited for at every step."""
        assert batch.keys is not None
        self.waiting.append((batch.keys, dict(errors)))
        if len(batch.keys) * len(self.waiting) >= PART_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what was added as a part."""
        if not self.waiting:
            return
        heads = self.waiting[0][1]
        part = {"keys": torch.from_numpy(np.concatenate([keys for keys, _ in self.waiting]))}
        part |= {head: torch.cat([errors[head] for _, errors in self.waiting]).float().cpu() for head in heads}
        self.waiting = []
        save_tensors(part_path(self.folder), part)


def keys_of(batch: Batch, data: PairData) -> np.ndarray:
    """[B] int64."""
    samples = len(batch.latents)
    conditions = [data.condition_key(group) for group in batch.members] * (samples // len(batch.members))
    parts = [batch.latents, batch.draw.time, batch.draw.noise, batch.weight]
    arrays = [part.contiguous().numpy() for part in parts if part is not None]
    found = np.empty(samples, np.int64)
    for sample, condition in enumerate(conditions):
        seen = hashlib.blake2b(condition.encode(), digest_size=8)
        for array in arrays:
            seen.update(f"{array.dtype}{array.shape[1:]}".encode())
            seen.update(array[sample].tobytes())
        found[sample] = int.from_bytes(seen.digest(), "little", signed=True)
    return found


def check_kept(name: str, objective: Any, online: bool) -> None:
    """Raises UsageError where the reference's errors are not numbers that other trainings would find."""
    why = "online training learns from samples that no other training sees" if online else why_not_kept(objective)
    if why is not None:
        raise UsageError(f"train.{name}.cache_reference: not with this objective: {why}. Leave cache_reference out.")


def why_not_kept(objective: Any) -> str | None:
    """What is against looking up the reference's errors, for an objective or its class; None where nothing is."""
    if objective.reference == "ema":
        return "its reference moves, so no error stays what it was"
    if objective.reference == "none":
        return "it has no reference"
    if objective.needs_residual:
        return "it needs the reference's residuals, a whole image each, and only their means are kept"
    return None
