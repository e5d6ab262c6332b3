"""The folder of a training run: fingerprint, checkpoints and result.

A checkpoint is a folder with checksums, written under a temporary name, flushed and renamed. The two latest are kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from prefkit.config import Model
from prefkit.errors import DamagedError, FingerprintError
from prefkit.models.load.trained import TRAINED_ON, write_trained_on
from prefkit.output import warn
from prefkit.store.checksums import check_folder
from prefkit.store.files import read_json, read_text, set_aside, sound_json, unreadable
from prefkit.store.folders import whole_folder
from prefkit.store.litter import remove
from prefkit.store.table import check_fingerprint
from prefkit.store.tensors import load_tensors
from prefkit.train.data.cache_keys import libraries

if TYPE_CHECKING:
    from prefkit.distributed.collectives import Processes

KEEP = 2
REMEDY = "The previous checkpoint is used."
Checkpoint = tuple[dict[str, Tensor], Any, dict[str, Any]]


def save(folder: Path, step: int, weights: Mapping[str, Tensor], optimizer: Any, state: Mapping[str, Any]) -> Path:
    """Write the checkpoint folder/step-N: weights.safetensors, optimizer.pt (tensors and numbers only), state.json."""
    final = folder / f"step-{step:08d}"
    if final.exists():
        return final
    with whole_folder(final) as temporary:
        plain = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in weights.items()}
        safetensors.torch.save_file(plain, temporary / "weights.safetensors")
        try:
            torch.save(optimizer, temporary / "optimizer.pt")
        except RuntimeError as error:  # torch's error on a full disk
            raise OSError(f"the optimizer's state could not be saved; is the disk full? ({error})") from error
        (temporary / "state.json").write_text(json.dumps({"step": step, **state}), encoding="utf-8")
    for old in _folders(folder)[:-KEEP]:
        remove(old)
    return final


def load_last(
    folder: Path, processes: Processes | None = None, check: Callable[[Mapping[str, Any]], Any] | None = None
) -> Checkpoint | None:
    """Load (weights, optimizer, state) of the newest undamaged checkpoint onto the CPU; None if there is none.

    Rank 0 chooses the checkpoint and renames damaged ones with a warning; the other ranks load the chosen checkpoint.
    check: called with a checkpoint's state; raises DamagedError if a file that the state refers to is unusable.
    """
    if processes is None or processes.count == 1:
        return _newest(folder, check)
    newest = _newest(folder, check) if processes.main else None
    step = processes.max(newest[2]["step"] if newest is not None else -1)
    if step < 0 or processes.main:
        return newest
    return load(folder / f"step-{step:08d}")


def _newest(folder: Path, check: Callable[[Mapping[str, Any]], Any] | None) -> Checkpoint | None:
    for path in reversed(_folders(folder)):
        try:
            checkpoint = load(path)
            if check is not None:
                check(checkpoint[2])
            return checkpoint
        except DamagedError as error:
            warn(f"checkpoint {path} cannot be read and is renamed to {set_aside(path).name}: {error}")
    return None


def load(path: Path) -> Checkpoint:
    """Load (weights, optimizer, state) of one checkpoint onto the CPU. Raises DamagedError, which names the file."""
    check_folder(path, REMEDY)
    state = read_state(path)
    weights, _ = load_tensors(path / "weights.safetensors", REMEDY)
    return weights, _load_optimizer(path / "optimizer.pt"), state


def read_state(path: Path) -> dict[str, Any]:
    """Read the state.json of a checkpoint. Raises DamagedError, which names the file."""
    file = path / "state.json"
    try:
        state = json.loads(read_text(file, REMEDY))
        if not isinstance(state, dict) or not isinstance(state.get("step"), int):
            raise ValueError("`step` is missing")
    except (ValueError, RecursionError) as error:
        raise DamagedError(file, f"{file} could not be read: {error}. {REMEDY}") from error
    return state


def _load_optimizer(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # torch.load can raise any error if bytes are damaged
        raise unreadable(path, error, REMEDY) from error


def last_step(folder: Path) -> int:
    """Return the step of the newest checkpoint, 0 if there is none."""
    folders = _folders(folder)
    return int(folders[-1].name.removeprefix("step-")) if folders else 0


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdigit())


# -- the folder of a training run -----------------------------------------------------------------------------
def untrained(folder: Path) -> bool:
    return not (folder / "final").exists() and last_step(folder / "checkpoints") == 0


def claim(
    folder: Path, fingerprint: Mapping[str, Any], unit: str, total: int, remedy: str, *, write: bool = True
) -> bool:
    """Record the fingerprint of a training run in its `folder` as spec.json; return True if the run is finished.

    An unfinished run must keep its library versions, because other versions may encode images and prompts differently.
    unit, total: see `finished`. write: False writes nothing, for a dry run. Raises FingerprintError.
    """
    path, now, fresh = folder / "spec.json", libraries(), untrained(folder)
    began = now if fresh or not path.exists() else read_json(path).get("libraries")
    check_fingerprint(path, {**fingerprint, "libraries": began}, remedy, fresh=fresh, write=write)
    done = finished(folder, unit, total, remedy, write=write)
    if not done and began != now:
        raise FingerprintError(
            f"the training in {folder} began with {_versions(began or {})}, but {_versions(now)} are installed, which "
            "may encode images and prompts differently. Install the earlier versions, or train under another name.",
            folder,
            ["libraries"],
        )
    return done


def finished(folder: Path, unit: str, total: int, remedy: str, *, write: bool = True) -> bool:
    """True if the folder holds an undamaged result of a run that made `total` units of training or stopped early.

    unit: "steps" | "rounds". Raises FingerprintError if the result was trained for more than `total` units.
    """
    result = sound_result(folder, rename=write)
    if result is None:
        return False
    if result[unit] > total:
        raise FingerprintError(
            f"{folder} was trained for {result[unit]} {unit}, but the recipe asks for {total}. {remedy}",
            folder,
            [unit],
        )
    return result[unit] == total or bool(result.get("out_of_patience") or result.get("stopped"))


def sound_result(folder: Path, rename: bool = True) -> dict[str, Any] | None:
    """Return the content of result.json; None if result.json or final/ is missing or damaged.

    rename: rename damaged files; the run then resumes from its last checkpoint and exports the result again.
    """
    path, final = folder / "result.json", folder / "final"
    if not path.exists():
        return None
    checked = path
    try:
        result: dict[str, Any] = read_json(path)
        checked = final
        check_folder(final, "It is exported again.")
    except DamagedError as error:
        if rename:
            warn(f"{checked} is renamed to {set_aside(checked).name} and exported again: {error}")
        return None
    return result if final.is_dir() else None


def record_data(folder: Path, captions: set[str], scorers: Any, model: Model, base: str, *, fresh: bool) -> None:
    """If trained_on.json is missing or the run is new, write it, to tell eval the training prompts and scorers."""
    if fresh or sound_json(folder / TRAINED_ON) is None:
        write_trained_on(folder, captions, scorers, model, base)


def _versions(versions: Mapping[str, str]) -> str:
    return " and ".join(f"{name} {version}" for name, version in versions.items()) or "unknown libraries"
