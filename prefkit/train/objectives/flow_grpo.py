"""Flow-GRPO: Liu et al., arXiv 2505.05470, eq. 4, with a penalty for leaving the reference.

    loss = max(-A r, -A clip(r, 1 - clip, 1 + clip)) + kl |mean - mean_ref|^2 / (2 std^2)

The penalty is the closed form of the divergence of two Gaussians of equal std, a mean over the elements. The released
code divides by 2 sigma_t^2 without the step's size, so a kl tuned for that code has a different scale here.

trust  the method that keeps an update near the policy that sampled:
  clip   PPO's clip, as above
  guard  GRPO-Guard (arXiv 2510.22319): r = exp((log r + |dmean|^2 / (2 std^2)) std), whose mean over samples stays 1
         at every step, and the loss is divided by the step's size
  dppo   Flow-DPPO (arXiv 2606.11025): no clip; a term is dropped where |dmean|^2 / (2 std^2) reaches `limit` and the
         term would move further away (r > 1 with A > 0, r < 1 with A < 0)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from prefkit.train.online.noise import Step


@dataclass(frozen=True)
class FlowGRPOOptions:
    #: the ratio is clipped to 1 - clip .. 1 + clip (trust: clip and guard)
    clip: float = 1e-4
    #: weight of the divergence from the reference; with 0, the reference is not run
    kl: float = 0.04
    #: clip | guard | dppo: trust region
    trust: Literal["clip", "guard", "dppo"] = "clip"
    #: divergence from the sampling policy at which dppo drops a term
    limit: float = 1e-5


class FlowGRPO:
    """Flow-GRPO loss [B] for single denoising steps with advantages and a penalty for leaving the reference."""

    Options = FlowGRPOOptions
    shape = "step"
    group_relative = True
    needs_mean = True  # of the policy that sampled

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
    """Return the KL divergence [B] of two Gaussians that both have a's std, as a mean over the elements."""
    return ((a.mean - b.mean) ** 2).flatten(1).mean(1) / (2 * a.std**2)


plugin = FlowGRPO
