"""Linear-DPO (experimental): a linear utility whose gradients do not vanish, and a moving reference, arXiv 2605.21123.

    loss = w (e_w - e_l),    w = clip(1/2 - slope z, least, 1 - least), without a gradient through w

e_w, e_l  the policy's squared errors on winner and loser
z         the margin of train/objectives/_pairwise.py; the reference is the policy's exponential moving average
slope     0.4 on z equals the paper's 0.2 on beta h, since z = (beta / 2) h

The gradient is not scaled by beta, so use a learning rate as for SFT.
Departure: the paper gives no value for `least` (its eta); 0.05 is prefkit's choice.
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
class LinearOptions:
    #: scale of the margin in the weight; the paper uses 100 (SD 1.5) and 500 (SDXL)
    beta: float = 100.0
    #: how fast a pair's weight falls as its margin grows
    slope: float = 0.4
    #: smallest weight of a pair, below 0.5
    least: float = 0.05
    #: fraction of the moving reference that is kept at each step
    decay: float = 0.995


class Linear:
    """Linear-DPO loss [G] for pairs, against a moving reference."""

    Options = LinearOptions
    shape = "pair"
    reference = "ema"
    needs_residual = False

    def __init__(self, options: LinearOptions) -> None:
        if not 0 <= options.least < 0.5 or not 0 <= options.decay < 1:
            raise UsageError("linear: `least` must be at least 0 and below 0.5, and `decay` at least 0 and below 1.")
        self.options, self.decay = options, options.decay

    def loss(self, policy: Errors, reference: Errors | None, groups: Groups) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss [G] and metrics, each [G]. policy, reference: errors [2 G]."""
        assert reference is not None
        e_w, e_l = sides(policy.mean, groups)
        r_w, r_l = sides(reference.mean, groups)
        win, lose = r_w - e_w, r_l - e_l
        z = self.options.beta / 2 * (win - lose)
        weight = (0.5 - self.options.slope * z).clamp(self.options.least, 1 - self.options.least).detach()
        return weight * (e_w - e_l), pair_metrics(z, win, lose) | {"weight": weight}


plugin = Linear
