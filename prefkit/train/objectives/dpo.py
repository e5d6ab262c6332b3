"""Diffusion-DPO: Wallace et al., Diffusion Model Alignment Using Direct Preference Optimization, 2311.12908, eq. 14.

    z = (beta / 2) * [(r_w - e_w) - (r_l - e_l)],    loss = -log sigmoid(z)

e_w, e_l  the policy's squared errors on winner and loser, which share one time and one noise
r_w, r_l  the frozen reference's errors at the same time and noise
beta      how strongly the policy is held to the reference

Noisy labels. Let q be the probability that the winner is better, and l(z) = -log sigmoid(z):
label_smoothing eps   q = 1 - eps:  q l(z) + (1 - q) l(-z)                        cDPO, Mitchell 2023
robust                [(1 - eps) l(z) - eps l(-z)] / (1 - 2 eps), unbiased        Chowdhury et al., arXiv 2403.00409
labels: soft          q = p of the pair, smoothed by eps
labels: margin        l((2 p - 1) z)                                              SmPO-Diffusion; its c is part of beta

Departures from the paper's text: errors are means over the latent elements, as in the released code, not squared norms
(beta on means equals beta / elements on sums). The factor 1/2 of the derivation is explicit. omega and T are constants
and part of beta. For flow models, the error is that of the velocity, and beta is constant: arXiv 2501.13918 found
beta (1 - t)^2 to be worse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefkit.errors import UsageError
from prefkit.train.objectives._pairwise import PairOptions, Pairwise, Terms

if TYPE_CHECKING:
    from torch import Tensor

LABELS = ("hard", "soft", "margin")


@dataclass(frozen=True)
class DPOOptions(PairOptions):
    #: assumed fraction of wrong labels, at least 0 and below 0.5
    label_smoothing: float = 0.0
    #: use the unbiased form of label smoothing instead of the conservative one
    robust: bool = False
    #: hard | soft | margin: how to use a pair's p (probability that the winner is better); hard ignores p
    labels: str = "hard"


class DPO(Pairwise):
    """Diffusion-DPO loss [G] for pairs against a frozen reference; log 2 where policy = reference."""

    Options = DPOOptions

    def __init__(self, options: DPOOptions) -> None:
        super().__init__(options)
        if not 0 <= options.label_smoothing < 0.5:
            raise UsageError(
                f"dpo: label_smoothing is {options.label_smoothing:g}; it must be at least 0 and below 0.5."
            )
        if options.labels not in LABELS:
            raise UsageError(f"dpo: labels: {options.labels!r} is unknown; choose {', '.join(LABELS)}.")
        if options.robust and (options.labels == "soft" or not options.label_smoothing):
            raise UsageError("dpo: robust needs label_smoothing above 0 and labels `hard` or `margin`.")

    def of_z(self, terms: Terms) -> Tensor:
        from torch.nn.functional import logsigmoid

        o, z = self.options, terms.z
        if o.labels == "margin":
            z = (2 * terms.p - 1) * z
        right, wrong = -logsigmoid(z), -logsigmoid(-z)
        if o.robust:
            return ((1 - o.label_smoothing) * right - o.label_smoothing * wrong) / (1 - 2 * o.label_smoothing)
        if o.labels != "soft" and not o.label_smoothing:
            return right
        q = terms.p if o.labels == "soft" else 1.0
        q = (1 - o.label_smoothing) * q + o.label_smoothing * (1 - q)
        return q * right + (1 - q) * wrong


plugin = DPO
