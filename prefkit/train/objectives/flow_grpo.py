"""Flow-GRPO: Liu et al., arXiv 2505.05470, eq. 4, with a KL penalty against the reference.

    loss = max(-A r, -A clip(r, 1 - clip, 1 + clip)) + kl |mean - mean_ref|^2 / (2 std^2)

A is the advantage. The penalty is the KL divergence between two Gaussians of equal std, as a mean over the elements.
The released code divides by 2 sigma_t^2, without the step size, so a `kl` tuned for that code has another scale here.

trust  the method that keeps an update near the sampling policy, with d = |mean - mean_old|^2 / (2 std^2):
  clip   PPO's clip, as above
  guard  GRPO-Guard (arXiv 2510.22319): exp((log r + d) std), whose mean over samples stays 1 at every step, replaces r,
         and the loss is divided by the step size
  dppo   Flow-DPPO (arXiv 2606.11025): no clip; a sample's term is dropped if d reaches `limit` and the term would move
         the policy further away (r > 1 and A > 0, or r < 1 and A < 0)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from prefkit.train.online.noise import Step


@dataclass(frozen=True)
class FlowGRPOOptions:
    #: the ratio is clipped to 1 - clip .. 1 + clip (trust clip and guard only)
    clip: float = 1e-4
    #: weight of the KL penalty; with 0, the reference is not computed
    kl: float = 0.04
    #: clip | guard | dppo: method that keeps an update near the sampling policy
    trust: Literal["clip", "guard", "dppo"] = "clip"
    #: KL divergence from the sampling policy at which dppo drops terms that would increase the divergence
    limit: float = 1e-5


class FlowGRPO:
    """Flow-GRPO loss [B] for single denoising steps with advantages, with a KL penalty against the reference."""

    Options = FlowGRPOOptions
    shape = "step"
    group_relative = True
    needs_mean = True  # the loss uses the means of the sampling policy

    def __init__(self, options: FlowGRPOOptions) -> None:
        self.options = options
        self.reference = "frozen" if options.kl else "none"

    def loss(self, new: Step, old: Step, reference: Step | None, advantage: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss [B] and metrics, each [B]. advantage: [B]."""
        loss, metrics = self._trusted(new, old, advantage)
        if reference is not None:
            kl = divergence(new, reference)
            loss = loss + self.options.kl * kl
            metrics["kl"] = kl.detach()
        return loss, metrics

    def _trusted(self, new: Step, old: Step, advantage: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        from prefkit.train.objectives.ddpo import clipped

        difference, moved = new.log_prob - old.log_prob, divergence(new, old)
        if self.options.trust == "clip":
            return clipped(difference, advantage, self.options.clip)
        if self.options.trust == "guard":
            loss, metrics = clipped((difference + moved) * new.std, advantage, self.options.clip)
            return loss / new.dt, metrics
        loss, metrics = clipped(difference, advantage, None)
        away = ((difference > 0) & (advantage > 0)) | ((difference < 0) & (advantage < 0))
        dropped = away & (moved.detach() >= self.options.limit)
        high, low = dropped & (advantage > 0), dropped & (advantage < 0)
        return loss * (~dropped), metrics | {"clip_high": high.float(), "clip_low": low.float()}


def divergence(a: Step, b: Step) -> Tensor:
    """Return the KL divergence [B] between two Gaussians that both have a.std, as a mean over the elements."""
    return ((a.mean - b.mean) ** 2).flatten(1).mean(1) / (2 * a.std**2)


plugin = FlowGRPO
