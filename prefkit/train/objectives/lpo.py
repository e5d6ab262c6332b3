"""Diffusion-LPO (experimental): Plackett-Luce loss for ranked lists; equals DPO for two images; arXiv 2510.01540.

    s_j = (beta / 2) a_j,    loss = sum over j of [ -s_j + log sum over k >= j of exp(s_k) ],    best first

a_j   advantage r - e of the j-th best image (reference's error minus policy's); a list shares one time and one noise
beta  as in dpo

train/data/groups.py makes the lists from the score gaps of each request's pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from prefkit.types import Errors, Groups


@dataclass(frozen=True)
class LPOOptions:
    #: how strongly the policy is held to the reference, as in dpo
    beta: float = 2000.0


class LPO:
    """Diffusion-LPO loss [G] for ranked lists of one length m per batch; log m! where policy = reference."""

    Options = LPOOptions
    shape = "list"
    reference = "frozen"
    needs_residual = False

    def __init__(self, options: LPOOptions) -> None:
        self.options = options

    def loss(self, policy: Errors, reference: Errors | None, groups: Groups) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss [G] and metrics, each [G]. policy, reference: errors [m G]."""
        assert reference is not None
        length = int(groups.rank.max()) + 1
        order = (length * groups.index + groups.rank).argsort()
        advantage = (reference.mean - policy.mean)[order].view(-1, length)
        s = self.options.beta / 2 * advantage
        tail = s.flip(1).logcumsumexp(1).flip(1)
        higher = (s[:, :, None] - s[:, None, :])[:, *_upper(length)]
        accuracy = ((higher > 0).float() + 0.5 * (higher == 0).float()).mean(1)
        metrics = {"implicit_accuracy": accuracy, "margin": higher.mean(1), "win_advantage": advantage[:, 0]}
        metrics["lose_advantage"] = advantage[:, -1]
        return (tail - s).sum(1), {name: value.detach() for name, value in metrics.items()}


def _upper(length: int) -> tuple[Tensor, Tensor]:
    """Return the index tensors (j, k) of all pairs with j < k."""
    import torch

    j, k = torch.triu_indices(length, length, 1).unbind(0)
    return j, k


plugin = LPO
