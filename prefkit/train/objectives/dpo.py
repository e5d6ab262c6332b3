"""Diffusion-DPO: Wallace et al., Diffusion Model Alignment Using Direct Preference Optimization, arXiv 2311.12908, eq. 14.

    z = (beta / 2) * [(r_w - e_w) - (r_l - e_l)],    loss = -log sigmoid(z)

e_w, e_l  the policy's squared error on winner and loser, at one time and one noise shared by both
r_w, r_l  the frozen reference's, at the same time and noise
beta      how strongly the policy is held to the reference

Where this departs from the paper's text: errors are means over the latent elements, as in the released code, where the
paper has squared norms (a beta on means equals beta / elements on sums); the half of the derivation is written out;
omega and T are constant and part of beta. Of flow models the error is that of the velocity, with a constant beta:
arXiv 2501.13918 compared it with beta (1 - t)^2 and found the latter worse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from prefkit.types import Errors, Groups


@dataclass(frozen=True)
class DPOOptions:
    #: strength of the pull to the reference, on errors that are means over the latent elements
    beta: float = 2000.0


class DPO:
    """Loss [G] for pairs against a frozen reference. With policy = reference it is log 2."""

    Options = DPOOptions
    shape = "pair"
    reference = "frozen"
    needs_residual = False

    def __init__(self, options: DPOOptions) -> None:
        self.options = options

    def loss(self, policy: Errors, reference: Errors | None, groups: Groups) -> tuple[Tensor, dict[str, Tensor]]:
        """policy, reference: errors [2 G]. Returns the loss [G] and metrics [G] each."""
        from torch.nn.functional import logsigmoid

        assert reference is not None
        order = (2 * groups.index + groups.rank).argsort()
        win, lose = (reference.mean - policy.mean)[order].view(-1, 2).unbind(1)
        z = self.options.beta / 2 * (win - lose)
        accuracy = (z > 0).float() + 0.5 * (z == 0).float()
        metrics = {"implicit_accuracy": accuracy, "margin": z, "win_advantage": win, "lose_advantage": lose}
        return -logsigmoid(z), {name: value.detach() for name, value in metrics.items()}


plugin = DPO
