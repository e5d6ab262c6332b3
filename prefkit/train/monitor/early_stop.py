"""When to stop early, on the fixed held-out pairs, and weights that are kept because they may be the result."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from prefkit.errors import DamagedError
from prefkit.store.files import set_aside
from prefkit.store.tensors import load_tensors, save_tensors
from prefkit.train.checkpoint import read_state

BEST, LOOK = "best", "best-look"


class EarlyStopping:
    """Stops after `patience` measurements in a row without a new best accuracy; the best measured weights are the result.

    The accuracy is the mean over the held-out pairs and their times, ties counting half: 0.5 at the start. folder: of
    the training, where best-STEP.safetensors is kept beside the checkpoints.
    """

    def __init__(self, patience: int, folder: Path) -> None:
        self.patience, self.folder = patience, folder
        self.best, self.step, self.waited = -1.0, 0, 0

    @property
    def path(self) -> Path:
        return place(self.folder, BEST, self.step)

    @property
    def over(self) -> bool:
        return self.waited >= self.patience

    def look(self, step: int, accuracy: float) -> bool:
        """Whether this is the best so far."""
        better = accuracy > self.best
        if better:
            self.best, self.step = accuracy, step
        self.waited = 0 if better else self.waited + 1
        return better

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "step": self.step, "waited": self.waited}

    def load(self, state: Mapping[str, Any]) -> None:
        self.best, self.step, self.waited = state["best"], state["step"], state["waited"]


def place(folder: Path, name: str, step: int) -> Path:
    """Where a step's weights are kept. By step, since a kill may come between a new best and its checkpoint."""
    return folder / f"{name}-{step:08d}.safetensors"


def forget(folder: Path) -> None:
    """Remove weights that were the best once, and that no checkpoint in `folder` still takes for the best."""
    states = []
    for path in folder.glob("checkpoints/step-*/state.json"):
        with suppress(DamagedError):  # a checkpoint that cannot be used needs no weights
            states.append(read_state(path.parent))
    best = [place(folder, BEST, state["stopping"]["step"]) for state in states if "stopping" in state]
    best += [place(folder, LOOK, state["looks"]["best_step"]) for state in states if "looks" in state]
    for path in {*folder.glob(f"{BEST}-*.safetensors"), *folder.glob(f"{LOOK}-*.safetensors")} - set(best):
        path.unlink(missing_ok=True)


def keep(path: Path, weights: Mapping[str, Tensor]) -> None:
    save_tensors(path, weights)


def kept(path: Path) -> dict[str, Tensor]:
    """Raises DamagedError naming the file."""
    return load_tensors(path, "Run `prefkit train` again: it goes on from the checkpoint before.")[0]


def check(folder: Path, state: Mapping[str, Any]) -> None:
    """Raises DamagedError where the best weights that a checkpoint's state names cannot be read; they are set aside."""
    needed = []
    if "stopping" in state and state["stopping"]["best"] >= 0:
        needed.append(place(folder, BEST, state["stopping"]["step"]))
    if "looks" in state and (path := place(folder, LOOK, state["looks"]["best_step"])).exists():
        needed.append(path)
    for path in needed:
        try:
            kept(path)
        except DamagedError:
            set_aside(path)
            raise
