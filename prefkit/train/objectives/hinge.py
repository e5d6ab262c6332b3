"""Hinge loss on the margin: Zhao et al., SLiC-HF, arXiv 2305.10425, with implicit rewards as in 2309.06657.

    loss = max(0, 1 - z)

z  the margin, defined in train/objectives/_pairwise.py; pairs with z above 1 have no gradient
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefkit.train.objectives._pairwise import Pairwise, Terms

if TYPE_CHECKING:
    from torch import Tensor


class Hinge(Pairwise):
    """Hinge loss [G] for pairs; 1 where policy = reference."""

    def of_z(self, terms: Terms) -> Tensor:
        return (1 - terms.z).relu()


plugin = Hinge
