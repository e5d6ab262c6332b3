"""Keys of the random draws of a visit: time, noise and flip.

The draws of a training visit depend on (train.seed, group, visit): trainings with different seeds share no draw, and a
resumed training, or another split into processes and micro-batches, draws the same. The draws of a measurement (visit
below 0: held-out pairs, preflight) depend on (group, visit) alone, so that the curves of several seeds are comparable.
"""

from __future__ import annotations

from prefkit.types import digest

#: version of these rules and of the families' draws; a training begun with a different version cannot be resumed
SCHEME = 2


def draw_key(seed: int, group: str, visit: int) -> str:
    """Return the key of a group's draws at a visit."""
    return group if visit < 0 else digest("draw", seed, group)
