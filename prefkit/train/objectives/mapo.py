"""MaPO (experimental): margin-aware preference optimization without a reference; Hong et al., arXiv 2406.06424.

    loss = e_w - weight log sigmoid(steps [phi(e_w) - phi(e_l)]),    phi(x) = s x / (exp(s x) - 1)

e_w, e_l  the policy's squared errors on winner and loser
phi       the image's likelihood under the model: 1 at error 0, falling as the error grows
weight    the paper's beta (0.1), renamed because beta means something else in the other objectives
steps, s  the paper's T (1000), and the option `scale` (0.5 in the paper)

The first term, e_w, is the SFT loss on winners. Without a reference, training saves a third of the compute and the
memory of a second network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefkit.train.objectives._pairwise import sides

if TYPE_CHECKING:
    from torch import Tensor

    from prefkit.types import Errors, Groups


@dataclass(frozen=True)
class MaPOOptions:
    #: weight of the margin relative to the winner's error
    weight: float = 0.1
    #: factor of the margin inside the sigmoid
    steps: float = 1000.0
    #: scale of the errors
    scale: float = 0.5


class MaPO:
    """MaPO loss [G] for pairs, without a reference."""

    Options = MaPOOptions
    shape = "pair"
    reference = "none"
    needs_residual = False

    def __init__(self, options: MaPOOptions) -> None:
        self.options = options

    def loss(self, policy: Errors, reference: Errors | None, groups: Groups) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss [G] and metrics, each [G]. policy: errors [2 G]."""
        from torch.nn.functional import logsigmoid

        e_w, e_l = sides(policy.mean, groups)
        z = self.options.steps * (self.likeness(e_w) - self.likeness(e_l))
        metrics = {"margin": z, "implicit_accuracy": (z > 0).float() + 0.5 * (z == 0).float(), "winner_error": e_w}
        return e_w - self.options.weight * logsigmoid(z), {name: value.detach() for name, value in metrics.items()}

    def likeness(self, error: Tensor) -> Tensor:
        x = (self.options.scale * error).clamp(1e-6, 80.0)  # avoids 0 / 0 and infinity
        return x / x.expm1()


plugin = MaPO
