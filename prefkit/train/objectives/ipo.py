"""IPO: Azar et al., A General Theoretical Paradigm to Understand Learning from Human Preferences, 2310.12036.

    loss = (z - 1/2)^2        with z of train/objectives/_pairwise.py instead of h

z  the margin, (beta / 2) times the difference of advantages; its optimum is finite, so no pair is pushed without limit

Departure: the paper has (h - 1 / (2 tau))^2. With z = tau h, this is (z - 1/2)^2 up to a constant factor, and
beta has the same meaning as for DPO.
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
