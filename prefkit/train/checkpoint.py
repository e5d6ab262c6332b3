"""Checkpoints as whole folders: written under a temporary name, flushed, renamed. The last two stay."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from prefkit.errors import StoreError
from prefkit.output import warn

KEEP = 2


def save(folder: Path, step: int, weights: Mapping[str, Tensor], optimizer: Any, state: Mapping[str, Any]) -> Path:
    """folder/step-00000100 with weights.safetensors, optimizer.pt (tensors and numbers alone) and state.json."""
    final = folder / f"step-{step:08d}"
    if final.exists():
        return final
    with whole_folder(final) as temporary:
        plain = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in weights.items()}
        safetensors.torch.save_file(plain, temporary / "weights.safetensors")
        try:
            torch.save(optimizer, temporary / "optimizer.pt")
        except RuntimeError as error:  # what torch makes of a full disk
            raise OSError(f"the optimizer's state could not be saved, is the disk full? ({error})") from error
        (temporary / "state.json").write_text(json.dumps({"step": step, **state}))
    for old in _folders(folder)[:-KEEP]:
        shutil.rmtree(old)
    return final


def load_last(folder: Path) -> tuple[dict[str, Tensor], Any, dict[str, Any]] | None:
    """(weights, optimizer, state) of the newest checkpoint that can be read, on the CPU; None where there is none."""
    for path in reversed(_folders(folder)):
        try:
            state = json.loads((path / "state.json").read_text())
            weights = safetensors.torch.load_file(path / "weights.safetensors")
            optimizer = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
        except (OSError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
            warn(f"checkpoint {path} cannot be read ({' '.join(str(error).split())[:120]}); the one before is used.")
            aside = path.with_name(f"{path.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(path, aside)
            continue
        return weights, optimizer, state
    return None


def last_step(folder: Path) -> int:
    """Step of the newest checkpoint, 0 where there is none."""
    folders = _folders(folder)
    return int(folders[-1].name.removeprefix("step-")) if folders else 0


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdigit())


class whole_folder:
    """with whole_folder(path) as temporary: fill `temporary`; at the end it is flushed and becomes `path`, or nothing is.

    What was at `path` is replaced. Raises StoreError where the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.temporary = path, path.with_name(f".{path.name}.tmp")

    def __enter__(self) -> Path:
        try:
            shutil.rmtree(self.temporary, ignore_errors=True)
            self.temporary.mkdir(parents=True)
        except OSError as error:
            raise self._refused(error) from error
        return self.temporary

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None:
            shutil.rmtree(self.temporary, ignore_errors=True)
            if isinstance(error, (OSError, safetensors.SafetensorError)):
                raise self._refused(error) from error
            return
        try:
            for file in self.temporary.rglob("*"):
                if file.is_file():
                    with open(file, "rb") as handle:
                        os.fsync(handle.fileno())
            old = self.path.with_name(f".{self.path.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            if self.path.exists():
                os.replace(self.path, old)
            os.replace(self.temporary, self.path)
            shutil.rmtree(old, ignore_errors=True)
        except OSError as failure:
            raise self._refused(failure) from failure

    def _refused(self, error: Exception) -> StoreError:
        return StoreError(f"{self.path} could not be written: {error}. What was stored before is intact.")
