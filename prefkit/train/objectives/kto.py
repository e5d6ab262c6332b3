"""Diffusion-KTO: learns from single good or bad images; Li et al., arXiv 2404.04465, after KTO, 2402.01306.

    loss = w_y (1 - sigmoid(s)),    s = (beta / 2)(a - Q) for desirable images, its negative for undesirable ones

a    an image's advantage r - e: the reference's error minus the policy's
Q    the reference point: max(0, mean advantage), without a gradient
w_y  the option `desirable` or `undesirable`, depending on the image's label

ADHMR (arXiv 2505.10250) adds base_loss * e for desirable images: the loss that its base model was trained with.

Departures: the factor 1/2 gives beta the same meaning as in DPO. Q is the mean over the global batch of the previous
step (0 at the first step), not the current one, so that the result does not depend on how a batch is split.
An image is desirable if it won at least one pair, as in the paper ("preferred at least once"), else undesirable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from prefkit.types import Errors, Groups


@dataclass(frozen=True)
class KTOOptions:
    #: how strongly the policy is held to the reference, as in dpo
    beta: float = 2000.0
    #: weight of desirable images
    desirable: float = 1.0
    #: weight of undesirable images
    undesirable: float = 1.0
    #: weight of the denoising loss of desirable images, added to the objective (0.1 in ADHMR)
    base_loss: float = 0.0


class KTO:
    """Diffusion-KTO loss [G] for single images labelled desirable or undesirable; w_y / 2 where a = Q."""

    Options = KTOOptions
    shape = "single"
    losers = True
    reference = "frozen"
    needs_residual = False

    def __init__(self, options: KTOOptions) -> None:
        self.options, self.point = options, 0.0

    def loss(self, policy: Errors, reference: Errors | None, groups: Groups) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss [G] and metrics, each [G]. policy, reference: errors [G]; groups.label: 1 = desirable."""
        assert reference is not None
        order = groups.index.argsort()
        advantage = (reference.mean - policy.mean)[order]
        good = groups.label[order] > 0.5
        s = self.options.beta / 2 * (advantage - self.point)
        s = s.where(good, -s)
        weight = (advantage * 0 + self.options.desirable).where(good, self.options.undesirable).detach()
        correct = (s > 0).float() + 0.5 * (s == 0).float()
        metrics = {"advantage": advantage, "implicit_accuracy": correct, "point": advantage * 0 + self.point}
        loss = weight * (-s).sigmoid()
        if self.options.base_loss:
            loss = loss + self.options.base_loss * policy.mean[order].where(good, 0.0)
        return loss, {name: value.detach() for name, value in metrics.items()}

    def observe(self, means: Mapping[str, float]) -> None:
        self.point = max(0.0, means["advantage"])

    def state(self) -> dict[str, float]:
        return {"point": self.point}

    def load(self, state: Mapping[str, float]) -> None:
        self.point = state["point"]


plugin = KTO
