"""Keys for the random draws at a visit of a group: time, noise and flip.

In training, the draws depend only on (train.seed, group, visit). Runs with different seeds share no draws; resuming a
run, or splitting it differently into processes and micro-batches, does not change them. In measurements (held-out
pairs and preflight, whose visits are below 0), the draws depend only on (group, visit), so that curves of several
seeds are comparable.
"""

from __future__ import annotations

from prefkit.types import digest

#: version of these rules and of the families' draws; a run begun with another version cannot be resumed
SCHEME = 2


def draw_key(seed: int, group: str, visit: int) -> str:
    """Return the key of a group's draws at a visit."""
    return group if visit < 0 else digest("draw", seed, group)
