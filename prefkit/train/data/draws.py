"""Keys of the random draws (time, noise and flip) for one visit of a group.

In training, draws depend only on (train.seed, group, visit). Runs with different seeds share no draws. Resuming a run,
or splitting it differently into processes and micro-batches, does not change its draws. Measurements (held-out pairs
and preflight) have visits below 0; their draws depend only on (group, visit), so that runs with different seeds can be
compared.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from prefkit.types import Draw, digest

if TYPE_CHECKING:
    from torch import Tensor

    from prefkit.models.schedule import Schedule

#: version of these rules and of the families' draws; a run begun with another version cannot be resumed
SCHEME = 2


def draw_key(seed: int, group: str, visit: int) -> str:
    """Return the key of a group's draws at a visit."""
    return group if visit < 0 else digest("draw", seed, group)


def drawn(schedule: Schedule, group: str, visit: int, like: Tensor, time_sampling: str | None = None) -> Draw:
    """Draw time [1] and noise [1, *like.shape], float32, CPU, as a function of (group, visit) alone.

    group: a key from `draw_key`. time_sampling: see Schedule.draw_time.
    """
    import torch

    seed = int.from_bytes(hashlib.sha256(f"{group}\n{visit}".encode()).digest()[:8], "little") >> 1
    generator = torch.Generator("cpu").manual_seed(seed)
    time = schedule.draw_time(generator, time_sampling)
    noise = torch.randn(like.shape, generator=generator, dtype=torch.float32)
    return Draw(time.unsqueeze(0), noise.unsqueeze(0))
