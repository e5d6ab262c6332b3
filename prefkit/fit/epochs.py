"""Epochs with early stopping on a validation AUC, for the fits that train a small head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from prefkit.output import Progress

T = TypeVar("T")


def best_epoch(
    label: str, settings: Any, epoch: Callable[[], tuple[float, float]], snapshot: Callable[[], T]
) -> tuple[T, dict[str, Any]]:
    """Run up to `settings.epochs` epochs; stop once the validation AUC has not risen for `settings.patience` epochs.

    epoch: trains for one epoch and returns (loss, validation AUC). Returns the `snapshot()` taken after the best epoch,
    and a dict with the number of epochs, the best epoch and the AUC of every epoch.
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
