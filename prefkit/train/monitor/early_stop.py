"""Early stopping by the accuracy on held-out pairs, and the files with the best weights so far."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from prefkit.errors import DamagedError
from prefkit.store.files import set_aside
from prefkit.store.tensors import load_tensors
from prefkit.train.checkpoint import read_state

BEST, BEST_SAMPLES = "best", "best-look"  # file prefixes: best weights by held-out pairs, by sample evaluation


class EarlyStopping:
    """Stops after `patience` measurements in a row without a new best accuracy; the best weights become the result.

    The accuracy is the mean over held-out pairs and time bins. Ties count half, so the accuracy is 0.5 before training.
    folder: train/NAME, where best-STEP.safetensors is written.
    """

    def __init__(self, patience: int, folder: Path) -> None:
        self.patience, self.folder = patience, folder
        self.best, self.step, self.waited = -1.0, 0, 0

    @property
    def path(self) -> Path:
        return weights_path(self.folder, BEST, self.step)

    @property
    def over(self) -> bool:
        return self.waited >= self.patience

    def update(self, step: int, accuracy: float) -> bool:
        """Record a measurement; return True if it is the best so far."""
        better = accuracy > self.best
        if better:
            self.best, self.step = accuracy, step
        self.waited = 0 if better else self.waited + 1
        return better

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "step": self.step, "waited": self.waited}

    def load(self, state: Mapping[str, Any]) -> None:
        self.best, self.step, self.waited = state["best"], state["step"], state["waited"]


def weights_path(folder: Path, name: str, step: int) -> Path:
    """Return the path for the best weights so far, those of step `step`.

    New best weights do not replace the file of the previous ones: after a crash, training resumes from the previous
    checkpoint, which needs the previous best weights.
    """
    return folder / f"{name}-{step:08d}.safetensors"


def load_weights(path: Path) -> dict[str, Tensor]:
    """Load the best weights from `path`. Raises DamagedError."""
    return load_tensors(path, "Run `prefkit train` again: it continues from the previous checkpoint.")[0]


def remove_stale(folder: Path) -> None:
    """Remove files of best weights to which no checkpoint in `folder` refers any longer."""
    best: set[Path] = set()
    for path in folder.glob("checkpoints/step-*/state.json"):
        with suppress(DamagedError):  # a damaged checkpoint needs no weights
            best |= set(_best(folder, read_state(path.parent)))
    for path in {*folder.glob(f"{BEST}-*.safetensors"), *folder.glob(f"{BEST_SAMPLES}-*.safetensors")} - best:
        path.unlink(missing_ok=True)


def check_weights(folder: Path, state: Mapping[str, Any]) -> None:
    """Check the best weights to which a checkpoint's state refers: rename a damaged file and raise DamagedError."""
    for path in _best(folder, state):
        try:
            load_weights(path)
        except DamagedError:
            set_aside(path)
            raise


def _best(folder: Path, state: Mapping[str, Any]) -> list[Path]:
    """Return the files of best weights to which a checkpoint's state refers."""
    paths = []
    if state.get("stopping", {}).get("best", -1) >= 0:
        paths.append(weights_path(folder, BEST, state["stopping"]["step"]))
    if "looks" in state and (path := weights_path(folder, BEST_SAMPLES, state["looks"]["best_step"])).exists():
        paths.append(path)
    return paths
