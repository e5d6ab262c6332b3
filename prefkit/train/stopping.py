"""When to stop early, on the fixed held-out pairs, and weights that are kept because they may be the result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from prefkit.store import write_whole


class EarlyStop:
    """Stops after `patience` measurements in a row without a new best accuracy; the best measured weights are the result.

    The accuracy is the mean over the held-out pairs and their times, ties counting half: 0.5 at the start. folder: of
    the training, where best.safetensors is kept beside the checkpoints.
    """

    def __init__(self, patience: int, folder: Path) -> None:
        self.patience, self.path = patience, folder / "best.safetensors"
        self.best, self.step, self.waited = -1.0, 0, 0

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


def keep(path: Path, weights: Mapping[str, Tensor]) -> None:
    plain = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in weights.items()}
    write_whole(path, lambda temporary: safetensors.torch.save_file(plain, temporary))


def kept(path: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(path)
