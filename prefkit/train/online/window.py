"""Which steps of a chain are stochastic: all, or a window of them that a whole group shares.

MixGRPO (arXiv 2507.21802): window 4, moved on by one step every 25 rounds. The fast variant of Flow-GRPO: window 2 at a
place that is drawn anew. Members of one group with different windows make training collapse, so that the place is a
function of (seed, round, request) alone.
"""

from __future__ import annotations

import numpy as np

from prefkit.types import digest


def stochastic(steps: int, window: int, every: int, seed: int, number: int, request: str) -> np.ndarray:
    """[steps] bool. window 0 = all; every 0 = a place drawn per group and round, else moved on every so many rounds."""
    if window == 0 or window >= steps:
        return np.ones(steps, dtype=bool)
    places = steps - window + 1
    drawn = int(digest("window", seed, number, request, length=12), 16)
    start = number // every % places if every else drawn % places
    found = np.zeros(steps, dtype=bool)
    found[start : start + window] = True
    return found
