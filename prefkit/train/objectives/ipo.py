"""IPO: Azar et al., A General Theoretical Paradigm to Understand Learning from Human Preferences, 2310.12036.

    loss = (z - 1/2)^2

z  the margin, defined in train/objectives/_pairwise.py; the optimum is finite, so margins do not grow without limit

Departure: the paper's loss is (h - 1 / (2 tau))^2. With z = tau h, the paper's loss is (z - 1/2)^2 up to a constant
factor, and beta has the same meaning as in DPO.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefkit.train.objectives._pairwise import Pairwise, Terms

if TYPE_CHECKING:
    from torch import Tensor


class IPO(Pairwise):
    """IPO loss [G] for pairs; 1/4 where policy = reference."""

    def of_z(self, terms: Terms) -> Tensor:
        return (terms.z - 0.5).square()


plugin = IPO
