"""Supervised fine-tuning on the winners: the plain denoising loss (DDPM, arXiv 2006.11239, eq. 14; flow: 2209.03003).

    loss = e_w

e_w  the policy's squared error on the winner, a mean over the latent elements

Losers and the reference are not used. As a control, SFT shows how much of an improvement comes from training on good
images alone, without preferences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from prefkit.types import Errors, Groups


@dataclass(frozen=True)
class SFTOptions:
    pass


class SFT:
    """SFT loss [G] on the winners of the pairs, without a reference."""

    Options = SFTOptions
    shape = "single"
    reference = "none"
    needs_residual = False

    def __init__(self, options: SFTOptions) -> None:
        self.options = options

    def loss(self, policy: Errors, reference: Errors | None, groups: Groups) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the winners' errors [G] as the loss, and no metrics."""
        return policy.mean[groups.index.argsort()], {}


plugin = SFT
