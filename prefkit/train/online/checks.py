"""Checks for online training: settings before anything is loaded, drift and missing rewards during training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prefkit.config import Online, Train, bounds
from prefkit.errors import TrainingError, UsageError
from prefkit.pair.normalise import NORMALISATIONS
from prefkit.train.online.advantages import KINDS


def check_settings(name: str, online: Online) -> None:
    """Raise UsageError, before anything is loaded, for settings of train.NAME.online that are invalid."""
    where = f"train.{name}.online"
    bounds.check(online, where)
    for key, known in (("statistics", KINDS), ("normalise", ("batch", *NORMALISATIONS))):
        if getattr(online, key) not in known:
            raise UsageError(f"{where}.{key}: {getattr(online, key)!r} is unknown; choose {', '.join(known)}.")


def check_drift(drift: float, limit: float, number: int, config: Train) -> None:
    """Raise TrainingError if log-probabilities in training differ from those in sampling before the first update."""
    if not drift <= limit:
        raise TrainingError(
            f"round {number}: before the first update the log-probabilities of training differ from those of sampling "
            f"by {drift:.2g} (mean over elements), more than online.max_drift {limit:g}, so ratios would be wrong. "
            f"Usual causes: precision `{config.precision}` (try `no`, or `fp16` instead of `bf16`), a different batch "
            "size (set online.sample_batch to batch_size), or different guidance or dropout in sampling and training."
        )


def count_missing(values: np.ndarray, limit: float, errors: Sequence[str], number: int) -> int:
    """Count missing rewards. Raises TrainingError if more than the fraction `limit`, or all, are missing."""
    missing = int(np.isnan(values).sum())
    if missing > limit * len(values) or missing == len(values):
        raise TrainingError(
            f"round {number}: {missing} of {len(values)} rewards are missing, more than online.max_failed {limit:g} "
            f"allows. The first error: {errors[0] if errors else 'no reason given'}. Fix the cause and run the same "
            "command again: training resumes at the start of the round."
        )
    return missing
