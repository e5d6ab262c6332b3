"""DPO-Positive (experimental): Pal et al., Smaug: Fixing Failure Modes of Preference Optimisation, arXiv 2402.13228.

    loss = -log sigmoid(z - strength (beta / 2) max(0, -a_w))

z, a_w    the margin and the winner's advantage, defined in train/objectives/_pairwise.py
strength  the paper's lambda: the penalty on winners that the policy fits worse than the reference does

Departure: (beta / 2) a_w replaces the paper's log ratio of likelihoods.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefkit.errors import UsageError
from prefkit.train.objectives._pairwise import PairOptions, Pairwise, Terms

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DPOPOptions(PairOptions):
    #: penalty if the policy gets worse on a winner, relative to the margin
    strength: float = 1.0


class DPOP(Pairwise):
    """DPO-Positive loss [G] for pairs; log 2 where policy = reference."""

    Options = DPOPOptions

    def __init__(self, options: DPOPOptions) -> None:
        super().__init__(options)
        if options.strength < 0:
            raise UsageError(
                f"dpop: strength is {options.strength:g}; it must be at least 0, because a value below 0 would reward "
                "winners that get worse."
            )

    def of_z(self, terms: Terms) -> Tensor:
        from torch.nn.functional import logsigmoid

        return -logsigmoid(terms.z - self.options.strength * terms.beta / 2 * (-terms.win).relu())


plugin = DPOP
