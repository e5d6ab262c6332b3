"""CaPO: Lee et al., Calibrated Multi-Preference Optimization for Aligning Diffusion Models, 2502.02588.

    loss = (R - z)^2,    R = R_ca(winner) - R_ca(loser)

R_ca  the calibrated reward of an image: the probability that it beats another image of the same request
z     the margin, defined in train/objectives/_pairwise.py

Departures: an image competes only with the other image of its pair, so R = p - (1 - p) = 2 p - 1, where p is the pair's
probability that the winner is better. With `target: score_gap`, R is the pair's score_gap; use this if the scores are
win rates. The paper's weight by noise level is left out; use train.NAME.time_sampling instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefkit.errors import UsageError
from prefkit.train.objectives._pairwise import PairOptions, Pairwise, Terms

if TYPE_CHECKING:
    from torch import Tensor

TARGETS = ("p", "score_gap")


@dataclass(frozen=True)
class CaPOOptions(PairOptions):
    #: p | score_gap: the target margin is 2 p - 1, or the pair's score_gap
    target: str = "p"


class CaPO(Pairwise):
    """CaPO loss [G] for pairs, which pulls the margin towards the difference in calibrated reward."""

    Options = CaPOOptions

    def __init__(self, options: CaPOOptions) -> None:
        super().__init__(options)
        if options.target not in TARGETS:
            raise UsageError(f"capo: target: {options.target!r} is unknown; choose {', '.join(TARGETS)}.")

    def of_z(self, terms: Terms) -> Tensor:
        target = 2 * terms.p - 1 if self.options.target == "p" else terms.score_gap
        if target.isnan().any():
            raise UsageError("capo: a pair has no score_gap. Use `target: p`, or pairs with the column score_gap.")
        return (target - terms.z).square()


plugin = CaPO
