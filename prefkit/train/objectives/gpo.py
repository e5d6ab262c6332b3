"""GPO: DPO on groups of images with standardised scores, from any run; Chen et al., arXiv 2505.11070.

    A_i = (s_i - mean s) / std s,    z = (beta / m) sum over i of A_i a_i,    loss = -log sigmoid(z)

s_i  score of image i of a request, and m their number; mean and std (divided by m) are those of the group
a_i  advantage r - e of the policy over the reference: the reference's squared error minus the policy's
beta as in dpo; since z = (beta / m^2) times the sum over pairs i < j of (A_i - A_j)(a_i - a_j), pairs of similar score have
     little weight, and a group of two has the loss of dpo

Offline, a group is the set of a request's images that the pairs connect, and s comes from their score gaps: strategy
`all_pairs` gives whole groups. Online, s is the reward, whatever `online.statistics` is. A group of equal scores has no
gradient.

The difference to dgpo is the standardisation within the group. The form and the scale of beta could not be compared with
the paper's, because only its abstract was available.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from prefkit.types import Errors, Groups

LEAST = 1e-6  # smallest std of a group's advantages


@dataclass(frozen=True)
class GPOOptions:
    #: how strongly the policy is held to the reference, as in dpo
    beta: float = 2000.0


class GPO:
    """GPO loss [G] for groups of equally many images with advantages; log 2 where policy = reference."""

    Options = GPOOptions
    shape = "list"
    reference = "frozen"
    needs_residual = False
    needs_advantage = True

    def __init__(self, options: GPOOptions) -> None:
        self.options = options

    def loss(self, policy: Errors, reference: Errors | None, groups: Groups) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss [G] and metrics, each [G]. policy, reference: errors [m G]."""
        from prefkit.train.objectives.dgpo import by_group, preferred

        assert reference is not None and groups.advantage is not None
        closer = by_group(reference.mean - policy.mean, groups)
        scores = by_group(groups.advantage, groups)
        centred = scores - scores.mean(1, keepdim=True)
        advantage = centred / centred.std(1, correction=0, keepdim=True).clamp(min=LEAST)
        return preferred(closer, advantage, self.options.beta)


plugin = GPO
