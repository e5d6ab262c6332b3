"""Epochs with early stopping on a validation AUC, for the fits that train a small head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from prefkit.output import Progress

T = TypeVar("T")


def best_epoch(
    label: str, settings: Any, epoch: Callable[[], tuple[float, float]], snapshot: Callable[[], T]
) -> tuple[T, dict[str, Any]]:
    """Run epochs until their validation AUC has not risen for `patience` of them.

    epoch: trains for one and returns (loss, validation AUC). Returns the `snapshot()` of the best epoch, and the course.
    settings: epochs, patience.
    """
    best, since_best, best_state = -1.0, 0, snapshot()
    curve: list[float] = []
    with Progress(label, settings.epochs) as progress:
        while len(curve) < settings.epochs and since_best < settings.patience:
            loss, auc = epoch()
            curve.append(round(auc, 6))
            since_best += 1
            if auc > best:
                best, since_best, best_state = auc, 0, snapshot()
            progress.update(1, loss=loss, auc=auc)
    return best_state, {"epochs": len(curve), "best_epoch": curve.index(max(curve)) + 1, "auc_by_epoch": curve}
