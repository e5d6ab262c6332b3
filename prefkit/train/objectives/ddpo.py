"""DDPO: denoising diffusion policy optimisation, Black et al., arXiv 2305.13301, eq. 6 (IS) with PPO's clip.

    r = exp(log p_new - log p_old),    loss = max(-A r, -A clip(r, 1 - clip, 1 + clip))

A is the advantage. Log-probabilities are means over the elements of a sample, as in the released code, so the published
clip of 1e-4 applies unchanged. With one update per round, r is 1, and the gradient is the score-function estimate (SF,
eq. 5). With `online.updates` above 1, the gradient is the importance-sampled estimate (IS).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from prefkit.train.online.noise import Step


@dataclass(frozen=True)
class DDPOOptions:
    #: the ratio is clipped to 1 - clip .. 1 + clip; `null` disables the clip
    clip: float | None = 1e-4


class DDPO:
    """DDPO loss [B] for single denoising steps with advantages, without a reference."""

    Options = DDPOOptions
    shape = "step"
    reference = "none"
    group_relative = False

    def __init__(self, options: DDPOOptions) -> None:
        self.options = options

    def loss(self, new: Step, old: Step, reference: Step | None, advantage: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss [B] and metrics, each [B]. advantage: [B]."""
        return clipped(new.log_prob - old.log_prob, advantage, self.options.clip)


def clipped(difference: Tensor, advantage: Tensor, clip: float | None) -> tuple[Tensor, dict[str, Tensor]]:
    """Return PPO's clipped surrogate (arXiv 1707.06347, eq. 7) as the loss [B], and metrics, each [B].

    difference: log p_new - log p_old, [B]. The metrics clip_high and clip_low are 1 where the upper or lower limit
    removes the gradient: the upper one for good samples (advantage > 0), the lower one for bad samples.
    """
    ratio = difference.exp()
    metrics = {"ratio": ratio.detach(), "approx_kl": 0.5 * difference.detach() ** 2}
    if clip is None:
        return -advantage * ratio, metrics
    metrics["clip_high"] = ((ratio > 1 + clip) & (advantage > 0)).float()
    metrics["clip_low"] = ((ratio < 1 - clip) & (advantage < 0)).float()
    return (-advantage * ratio).maximum(-advantage * ratio.clamp(1 - clip, 1 + clip)), metrics


plugin = DDPO
