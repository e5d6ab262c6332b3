"""Checkpoints as whole folders with checksums: written under a temporary name, flushed, renamed. The last two stay."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from prefkit.errors import DamagedError, StoreError
from prefkit.output import warn
from prefkit.store.checksums import check_folder
from prefkit.store.files import read_text, set_aside
from prefkit.store.folders import whole_folder
from prefkit.store.litter import remove
from prefkit.store.tensors import load_tensors

if TYPE_CHECKING:
    from prefkit.distributed import Processes

KEEP = 2
REMEDY = "The checkpoint before it is used."
Checkpoint = tuple[dict[str, Tensor], Any, dict[str, Any]]


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
        (temporary / "state.json").write_text(json.dumps({"step": step, **state}), encoding="utf-8")
    for old in _folders(folder)[:-KEEP]:
        remove(old)
    return final


def load_last(
    folder: Path, processes: Processes | None = None, check: Callable[[Mapping[str, Any]], Any] | None = None
) -> Checkpoint | None:
    """(weights, optimizer, state) of the newest checkpoint that is sound, on the CPU; None where there is none.

    The main process decides which, sets damaged ones aside with a warning, and the others load the same. check: looks at
    what else a state needs, and raises DamagedError where it cannot be used.
    """
    if processes is None or processes.count == 1:
        return _newest(folder, check)
    found = _newest(folder, check) if processes.main else None
    step = processes.max(found[2]["step"] if found is not None else -1)
    if step < 0 or processes.main:
        return found
    return load(folder / f"step-{step:08d}")


def _newest(folder: Path, check: Callable[[Mapping[str, Any]], Any] | None) -> Checkpoint | None:
    for path in reversed(_folders(folder)):
        try:
            found = load(path)
            if check is not None:
                check(found[2])
            return found
        except DamagedError as error:
            aside = set_aside(path)
            warn(f"checkpoint {path} cannot be read, and is set aside as {aside.name}: {error}")
    return None


def load(path: Path) -> Checkpoint:
    """(weights, optimizer, state) of one checkpoint, on the CPU. Raises DamagedError naming the file."""
    check_folder(path, REMEDY)
    state = read_state(path)
    weights, _ = load_tensors(path / "weights.safetensors", REMEDY)
    return weights, _optimizer(path / "optimizer.pt"), state


def read_state(path: Path) -> dict[str, Any]:
    """state.json of a checkpoint. Raises DamagedError naming the file."""
    file = path / "state.json"
    try:
        state = json.loads(read_text(file, REMEDY))
        if not isinstance(state, dict) or not isinstance(state.get("step"), int):
            raise ValueError("it says no step")
    except (ValueError, RecursionError) as error:
        raise DamagedError(file, f"{file} could not be read: {error}. {REMEDY}") from error
    return state


def _optimizer(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise StoreError(f"{path} could not be read: {error.strerror}. Give yourself permission to read it.") from error
    except MemoryError:
        raise
    except Exception as error:  # the reader of a format may stumble over wrong bytes in any way
        text = " ".join(str(error).split())[:120].rstrip(".") or type(error).__name__
        raise DamagedError(path, f"{path} could not be read: {text}. {REMEDY}") from error


def last_step(folder: Path) -> int:
    """Step of the newest checkpoint, 0 where there is none."""
    folders = _folders(folder)
    return int(folders[-1].name.removeprefix("step-")) if folders else 0


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdigit())
