"""DGPO: DPO on groups of scored images instead of pairs; Luo et al., arXiv 2510.08425.

    z = (beta / m) sum over i of A_i a_i,    loss = -log sigmoid(z)

m    number of images in the group, which share one time and one noise
A_i  the image's advantage (`online.statistics`) minus the group's mean: images with A > 0 are preferred to those with
     A < 0, weighted by |A|
a_i  advantage r - e of the policy over the reference: the reference's squared error minus the policy's
beta how strongly the policy is held to the reference; a group of two with A = 1 and -1 has the loss of dpo

A group of equal scores has no gradient and is left out. `online.refresh` renews the reference.

Departures: the released code multiplies the gradient by 1 / beta, which the optimizer's scale absorbs, and adds a clip
of the policy's change and a penalty against the start. The paper draws only times above a limit, so that the artefacts of
few-step samples are not learned; prefkit draws them as `time_sampling` says, so sample with enough steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from prefkit.types import Errors, Groups


@dataclass(frozen=True)
class DGPOOptions:
    #: how strongly the policy is held to the reference, as in dpo
    beta: float = 2000.0


class DGPO:
    """DGPO loss [G] for groups of equally many images with advantages; log 2 where policy = reference."""

    Options = DGPOOptions
    shape = "list"
    reference = "frozen"
    needs_residual = False
    needs_advantage = True

    def __init__(self, options: DGPOOptions) -> None:
        self.options = options

    def loss(self, policy: Errors, reference: Errors | None, groups: Groups) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss [G] and metrics, each [G]. policy, reference: errors [m G]."""
        assert reference is not None and groups.advantage is not None
        closer = by_group(reference.mean - policy.mean, groups)
        advantage = by_group(groups.advantage, groups)
        return preferred(closer, advantage - advantage.mean(1, keepdim=True), self.options.beta)


def by_group(values: Tensor, groups: Groups) -> Tensor:
    """Arrange values [m G], in any order, as [G, m], in the order of the groups and of the ranks."""
    length = int(groups.rank.max()) + 1
    return values[(length * groups.index + groups.rank).argsort()].view(-1, length)


def preferred(closer: Tensor, advantage: Tensor, beta: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss [G] and metrics, each [G]. closer: the reference's error minus the policy's; both [G, m]."""
    from torch.nn.functional import logsigmoid

    z = beta * (advantage * closer).mean(1)
    better = (advantage[:, :, None] - advantage[:, None, :]) > 0  # [G, m, m]: image i is better than image j
    gap = closer[:, :, None] - closer[:, None, :]
    right = ((gap > 0).float() + 0.5 * (gap == 0).float()) * better
    rows = range(len(closer))
    metrics = {
        "margin": z,
        "implicit_accuracy": right.sum((1, 2)) / better.sum((1, 2)).clamp(min=1),
        "win_advantage": closer[rows, advantage.argmax(1)],
        "lose_advantage": closer[rows, advantage.argmin(1)],
    }
    return -logsigmoid(z), {name: value.detach() for name, value in metrics.items()}


plugin = DGPO
