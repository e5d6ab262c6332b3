"""`validation_share`: how often the held-out pairs may be measured for it to take no more than a share of the training.

every = the least multiple of validate_every with  measurement <= share * every * step

Decided by the main process once, when the first measurement after the start is due, from the time of the start's and the
median of the steps since; written to pace.json and looked up from then on, so a resumed training measures at the steps
that an uninterrupted one does. Measuring draws nothing, so the steps are the same whatever the pace; with
`patience` it decides which of them can be the best, and when to stop.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from prefkit import output
from prefkit.store.files import read_json, write_json

FILE = "pace.json"

clock = time.monotonic


class Pace:
    """share: None = at every multiple of `every`. measurement: seconds of the last one before the pace is decided."""

    def __init__(self, share: float | None, every: int, folder: Path) -> None:
        self.share, self.every, self.folder = share, every, folder
        self.measurement, self.steps = 0.0, list[float]()
        self.decided: int | None = every if share is None else None

    def resume(self, step: int) -> None:
        """What was decided by this training; a fresh one decides anew."""
        path = self.folder / FILE
        if self.share is not None and step and path.exists():
            self.decided = read_json(path)["every"]

    def due(self, step: int, processes: Any) -> bool:
        if self.decided is None:
            if step % self.every:
                return False
            self._decide(processes)
        assert self.decided is not None
        return step % self.decided == 0

    def _decide(self, processes: Any) -> None:
        assert self.share is not None
        affordable = self.measurement / (self.share * max(median(self.steps), 1e-9))
        own = torch.tensor(float(self.every * max(1, math.ceil(affordable / self.every))) * processes.main)
        self.decided = round(processes.sum(own.double()).item())
        if processes.main:
            write_json(self.folder / FILE, {"every": self.decided})
            if self.decided > self.every:
                output.note(f"train {self.folder.name}: held-out pairs are measured every {self.decided} steps instead of "
                            f"{self.every}, for validation_share {self.share:g}: {self.measurement:.3g} s each.")  # fmt: skip
