"""What killed processes left half written, removed. Other trainings of the run may do the same, or be writing, meanwhile."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

ABANDONED = 3600.0  # seconds after which nobody is still writing a temporary file of a cache


def remove(folder: Path) -> None:
    """Of the training in `folder`, where only this process works, and of the caches that it shares, where old.

    A cache's file may be finished or removed by others between being listed and being looked at: then it is no litter.
    """
    own = [*folder.glob(".*.tmp"), *(folder / "checkpoints").glob(".*.tmp")]
    for path in [*own, *filter(_abandoned, _listed(folder.parent / ".cache"))]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _listed(cache: Path) -> list[Path]:
    """Temporary files below; folders that go while they are walked are passed over."""
    hidden = [Path(at) / name for at, _, names in os.walk(cache) for name in names if name.startswith(".")]
    return [path for path in hidden if path.suffix == ".tmp"]


def _abandoned(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > ABANDONED
    except FileNotFoundError:
        return False
