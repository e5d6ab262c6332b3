"""What the random numbers of a visit hang on: time, noise and mirroring.

A training visit hangs on (train.seed, group, visit), so trainings with different seeds share no draw, and a resumed
training or another split into processes and micro-batches draws the same. A measurement (visit below 0: held-out pairs,
preflight) hangs on (group, visit) alone: the curves of several seeds are then measured with the same numbers, and a
difference between them is one between the weights.
"""

from __future__ import annotations

from prefkit.types import digest

#: of the rules above and of what families make of a key; a training that began under another is not continued
SCHEME = 2


def draw_key(seed: int, group: str, visit: int) -> str:
    """The name that a group's draws have at a visit."""
    return group if visit < 0 else digest("draw", seed, group)
