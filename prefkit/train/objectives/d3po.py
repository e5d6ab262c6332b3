"""D3PO: DPO on each step of two sampled chains; Yang et al., arXiv 2311.13231, eq. 12, with the released code's clamp.

    loss = -log sigmoid(beta [log clamp(r_w, 1 - eps, 1 + eps) - log clamp(r_l, 1 - eps, 1 + eps)])
    r = p(step; policy) / p(step; reference), where log p is a mean over the elements of a sample

With beta 0.1 and eps 0.1 (used by D3PO and by FashionDPO, arXiv 2504.12900), the margin stays between -0.0201 and
0.0201, so the loss is not informative: watch implicit_accuracy, log_ratio and clamped instead. The clamp is the trust
region: a step beyond the clamp has no gradient. D3PO's authors report that images disintegrate without the clamp.

Mistakes in published code that are corrected here:
- The optimizer steps after every timestep, so the policy changes within a pair; prefkit averages over timesteps.
- Training and sampling use different guidance; prefkit trains with the guidance recorded in sampling.
- A checkpoint is written before the epoch that it is named after.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from prefkit.train.online.noise import Step


@dataclass(frozen=True)
class D3POOptions:
    beta: float = 0.1
    #: ratios are clamped to 1 - clamp .. 1 + clamp
    clamp: float = 0.1


class D3PO:
    """D3PO loss [G] for steps of winner and loser at one time; log 2 where policy = reference (which is frozen)."""

    Options = D3POOptions
    shape = "step_pair"
    reference = "frozen"
    group_relative = False

    def __init__(self, options: D3POOptions) -> None:
        self.options = options

    def loss(self, new: Step, old: Step, reference: Step | None, advantage: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss [G] and metrics [G]. new, reference: 2 G steps, winners first; unused: old, advantage."""
        assert reference is not None
        return preferred(new.log_prob - reference.log_prob, self.options.beta, self.options.clamp)


def preferred(log_ratio: Tensor, beta: float, clamp: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss [G] and metrics, each [G]. log_ratio: log(p / p_ref), [2 G], winners first."""
    from torch.nn.functional import logsigmoid

    clamped = log_ratio.exp().clamp(1 - clamp, 1 + clamp).log()
    outside = (log_ratio.exp() - 1).abs() > clamp
    win, lose = log_ratio.chunk(2)
    z = beta * (clamped.chunk(2)[0] - clamped.chunk(2)[1])
    metrics = {
        "implicit_accuracy": (win > lose).float() + 0.5 * (win == lose).float(),
        "margin": z,
        "log_ratio": 0.5 * (win.abs() + lose.abs()),
        "clamped": 0.5 * (outside.chunk(2)[0].float() + outside.chunk(2)[1].float()),
        "ratio": 0.5 * (win.exp() + lose.exp()),
    }
    return -logsigmoid(z), {name: value.detach() for name, value in metrics.items()}


plugin = D3PO
