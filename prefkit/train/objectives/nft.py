"""DiffusionNFT: learns from scored images without pairs or log-probabilities; Zheng et al., arXiv 2509.16117.

    v+ = (1 - beta) v_old + beta v,    v- = (1 + beta) v_old - beta v,    q = 1/2 + 1/2 clip(A / scale, -1, 1)
    loss = scale / beta [q D(v+) + (1 - q) D(v-)],    D(u) = mean |x(u) - x0|^2 / mean |x(u) - x0|

v, v_old  predictions of the policy and of the sampling policy, at one time and noise, for an image made by the latter
x(u)      the clean sample that prediction u implies; the denominator of D has no gradient
A         the image's advantage (`online.statistics`); q is the probability that the image counts as good

The sampling policy is the reference. After round i, the fraction min(ramp i, decay) of its weights is kept, and the
policy's weights replace the rest. At the start, the gradient is that of A D(v), for any beta and scale; images of
advantage 0 have none. With beta = 1 and A = scale the loss is that of supervised fine-tuning, divided by mean |x(u) - x0|.

Offline (without `online`), advantages come from the score gaps of each request's pairs as in gpo, and the reference is
the model before training, so the images should be its own.

As in the released code: the denominator, the factor scale / beta and the defaults. Departure: the released code also adds
1e-4 |v - v_start|^2, which prefkit leaves out. The paper uses flow models, sampled without guidance. Other predictions
are defined by x(u) as well, but the factor from an epsilon error to that of x(u) is large at high noise. Users of the
released code report grey images for SDXL without guidance, blurred ones for few-step models, and bright ones for some
seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefkit.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from prefkit.types import Errors, Groups

LEAST = 1e-5  # smallest denominator of D


@dataclass(frozen=True)
class NFTOptions:
    #: step from the sampling policy to the improved one: a smaller value makes the update more aggressive
    beta: float = 1.0
    #: advantage from which an image counts as entirely good (or, negated, as entirely bad)
    scale: float = 5.0
    #: largest fraction of the sampling policy that is kept after a round; 0 = always sample with the policy itself
    decay: float = 0.5
    #: increase of this fraction per round
    ramp: float = 0.001


class NFT:
    """DiffusionNFT loss [G] for single images with advantages, against the policy that sampled them."""

    Options = NFTOptions
    shape = "single"
    losers = True
    reference = "frozen"
    needs_residual = True
    needs_clean = True
    needs_advantage = True

    def __init__(self, options: NFTOptions) -> None:
        if not options.beta > 0 or not options.scale > 0 or not 0 <= options.decay < 1 or not options.ramp >= 0:
            raise UsageError("nft: beta and scale must be above 0, decay at least 0 and below 1, ramp at least 0.")
        self.options = options

    def kept(self, number: int) -> float:
        """Return the fraction of the sampling policy that is kept after round `number`, counted from 0."""
        return min(self.options.ramp * number, self.options.decay)

    def loss(self, policy: Errors, reference: Errors | None, groups: Groups) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss [G] and metrics, each [G]. policy, reference: errors [G] with residuals."""
        assert reference is not None and policy.residual is not None and reference.residual is not None
        assert policy.clean is not None and groups.advantage is not None
        order, o = groups.index.argsort(), self.options
        e, old, factor = policy.residual[order].flatten(1), reference.residual[order].flatten(1), policy.clean[order]
        advantage = groups.advantage[order]
        good = 0.5 + 0.5 * (advantage / o.scale).clamp(-1, 1)
        positive = self.distance((1 - o.beta) * old + o.beta * e, factor)
        negative = self.distance((1 + o.beta) * old - o.beta * e, factor)
        closer = (reference.mean - policy.mean)[order]
        agrees = closer * advantage
        metrics = {
            "advantage": closer,
            "implicit_accuracy": (agrees > 0).float() + 0.5 * (agrees == 0).float(),
            "moved": (e - old).square().mean(1),
        }
        loss = o.scale / o.beta * (good * positive + (1 - good) * negative)
        return loss, {name: value.detach() for name, value in metrics.items()}

    def distance(self, residual: Tensor, factor: Tensor) -> Tensor:
        """Return D [G]. residual: error of a prediction, [G, D]; factor: from it to the error of x(u), [G]."""
        error = factor[:, None] * residual
        return error.square().mean(1) / error.detach().abs().mean(1).clamp(min=LEAST)


plugin = NFT
