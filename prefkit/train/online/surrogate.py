"""PPO's clipped surrogate (arXiv 1707.06347, eq. 7) and what is logged about it."""

from __future__ import annotations

from torch import Tensor
from torch import maximum as larger


def clipped(difference: Tensor, advantage: Tensor, clip: float | None) -> tuple[Tensor, dict[str, Tensor]]:
    """difference: log p_new - log p_old, [B]. Returns the loss [B] and metrics [B] each.

    clip_high, clip_low: 1 where the clip takes the gradient away, which happens above for good samples (advantage > 0)
    and below for bad ones.
    """
    ratio = difference.exp()
    metrics = {"ratio": ratio.detach(), "approx_kl": 0.5 * difference.detach() ** 2}
    if clip is None:
        return -advantage * ratio, metrics
    held = ratio.clamp(1 - clip, 1 + clip)
    metrics["clip_high"] = ((ratio > 1 + clip) & (advantage > 0)).float()
    metrics["clip_low"] = ((ratio < 1 - clip) & (advantage < 0)).float()
    return larger(-advantage * ratio, -advantage * held), metrics
