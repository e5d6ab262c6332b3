"""Diffusion-SDPO (experimental): DPO in which losers cannot make winners worse, arXiv 2511.03317.

    loss = -log sigmoid(z) with the gradient through e_l scaled, per pair, by
    share = clip((1 - mu) |g_w|^2 / <g_w, g_l>, 0, 1) where <g_w, g_l> > 0, else 1

g_w, g_l  gradients of e_w and e_l with respect to the network's outputs: prediction - target, up to a common factor
mu        safety margin from 0 to 1: to first order, a step lowers the winner's error by at least mu times as much as
          a step on the winner alone

Departure: the released code computes one share for the whole batch, prefkit one for each pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefkit.errors import UsageError
from prefkit.train.objectives._pairwise import pair_metrics, sides

if TYPE_CHECKING:
    from torch import Tensor

    from prefkit.types import Errors, Groups


@dataclass(frozen=True)
class SDPOOptions:
    #: how strongly the policy is held to the reference, as in dpo
    beta: float = 2000.0
    #: safety margin, 0 to 1 (0.9 was used for SD 1.5, 0.6 for SDXL); 1 ignores losers if both gradients agree
    mu: float = 0.6


class SDPO:
    """Diffusion-SDPO loss [G] for pairs. Its value equals that of DPO, but its gradient does not."""

    Options = SDPOOptions
    shape = "pair"
    reference = "frozen"
    needs_residual = True

    def __init__(self, options: SDPOOptions) -> None:
        if not 0 <= options.mu <= 1:
            raise UsageError(f"sdpo: mu is {options.mu:g}; it must be between 0 and 1.")
        self.options = options

    def loss(self, policy: Errors, reference: Errors | None, groups: Groups) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss [G] and metrics, each [G]. policy, reference: errors [2 G]; policy has residuals."""
        from torch.nn.functional import logsigmoid

        assert reference is not None and policy.residual is not None
        e_w, e_l = sides(policy.mean, groups)
        r_w, r_l = sides(reference.mean, groups)
        share = self.share(*sides(policy.residual.detach().flatten(1), groups))
        guarded = share * e_l + (1 - share) * e_l.detach()
        win, lose = r_w - e_w, r_l - guarded
        z = self.options.beta / 2 * (win - lose)
        return -logsigmoid(z), pair_metrics(z, win, lose) | {"loser_share": share}

    def share(self, g_w: Tensor, g_l: Tensor) -> Tensor:
        """Return the factor [G] that scales the gradient through e_l. g_w, g_l: gradients, each [G, D]."""
        agree = (g_w * g_l).sum(1)
        limit = (1 - self.options.mu) * g_w.square().sum(1) / agree.clamp(min=1e-30)
        return limit.clamp(0, 1).where(agree > 0, 1.0)


plugin = SDPO
