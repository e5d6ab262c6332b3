"""Caches of tensor trees on disk, written once and read by memory map: latents, conditions and loss weights."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch

from prefkit.errors import DamagedError
from prefkit.models import trees
from prefkit.models.trees import Tree
from prefkit.output import warn
from prefkit.store.files import set_aside
from prefkit.store.litter import unique
from prefkit.store.tensors import load_tensors, save_tensors

#: seconds to wait until a part written by another machine is visible; network file systems take up to 60
VISIBLE = 120.0
SMALL, MOST_KEPT = 4096, 50_000  # limits for trees kept in memory: bytes per tree, number of trees


def in_share(key: str, share: tuple[int, int]) -> bool:
    """True if this process computes the entry with this hexadecimal key. share: (rank, processes)."""
    return int(key[:8], 16) % share[1] == share[0]


class Cache:
    """A folder of parts: safetensors files with serialised trees by key. `notes`: a small JSON value per key.

    Small trees, such as a mesh's latents (130 numbers), stay in memory after the first read, because decoding them
    takes longer than a training step of a small network.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes: dict[str, Any] = {}
        self._part: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        self._kept: dict[str, Tree] = {}
        self._load(folder.glob("part-*.safetensors"))

    def parts(self) -> list[str]:
        """Return the file names of the parts in use."""
        return sorted(path.name for path in self._open)

    def expect(self, names: Collection[str]) -> None:
        """Also use these parts, files that other processes wrote; wait until a network file system shows them."""
        deadline = time.monotonic() + VISIBLE
        missing = {self.folder / name for name in names} - self._open.keys()
        while missing and time.monotonic() < deadline:
            visible = {path for path in missing if path.exists()}
            self._load(visible)
            missing -= visible
            if missing:
                os.listdir(self.folder)  # makes some network file systems refresh their listing
                time.sleep(0.5)

    def keep(self, names: Collection[str]) -> None:
        """Stop using all parts (files of the cache) except these."""
        self._kept.clear()
        for path in [path for path in self._open if path.name not in names]:
            del self._open[path]
            self._part = {key: part for key, part in self._part.items() if part != path}

    def _load(self, paths: Iterable[Path]) -> None:
        """Open these files (parts of the cache). A damaged one is renamed, so that its entries are computed again."""
        for path in sorted(set(paths) - self._open.keys()):
            try:
                handle = safetensors.safe_open(path, "pt")
                notes = dict(json.loads(handle.metadata()["notes"]))
            except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
                rename_damaged(path, str(error))
                continue
            self._open[path] = handle
            self._part |= dict.fromkeys(handle.keys(), path)
            self.notes |= notes

    def __contains__(self, key: str) -> bool:
        return key in self._part

    def __len__(self) -> int:
        return len(self._part)

    def append(self, items: Mapping[str, Tree], notes: Mapping[str, Any] | None = None) -> None:
        """Write one part (file) with the entries `items`, {key: tree}, and the `notes` on them, {key: JSON value}."""
        if not items:
            return
        blobs = {
            key: torch.from_numpy(np.frombuffer(trees.dumps(tree), np.uint8).copy()) for key, tree in items.items()
        }
        save_tensors(part_path(self.folder), blobs, {"notes": json.dumps(dict(notes or {}))})
        self._load(self.folder.glob("part-*.safetensors"))

    def get(self, key: str) -> Tree:
        """Return the tree; its tensors must not be changed."""
        if key in self._kept:
            return self._kept[key]
        blob = self._open[self._part[key]].get_tensor(key).numpy().tobytes()
        tree = trees.loads(blob)
        if len(blob) <= SMALL and len(self._kept) < MOST_KEPT:
            self._kept[key] = tree
        return tree


def part_path(folder: Path) -> Path:
    """Return the path of a new part (file of a cache), whose name sorts after those of all existing parts."""
    return folder / f"part-{time.time_ns()}-{unique()}.safetensors"


def check_cache(folder: Path) -> None:
    """Rename every file of a cache that does not match its checksum, so that its entries are computed again.

    One process must call this before any process opens the cache, so that all processes see the same files.
    """
    for path in sorted(folder.glob("part-*.safetensors")):
        try:
            load_tensors(path, "")
        except DamagedError as error:
            rename_damaged(path, str(error))


def rename_damaged(path: Path, reason: str) -> None:
    renamed = set_aside(path)
    warn(f"{path} is damaged and was renamed to {renamed.name}; its entries are computed again. ({reason.strip()})")
