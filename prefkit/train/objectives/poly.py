"""Poly-DPO: ViPO, Visual Preference Optimization at Scale, ICLR 2026.

    loss = -log sigmoid(z) + alpha (1 - sigmoid(z))

z      the margin, defined in train/objectives/_pairwise.py
alpha  above 0 for noisy labels (pairs with z far below 0 count less), 0 for DPO, below 0 for labels that are too easy

The formula comes from secondary sources, because the paper's code is not public.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefkit.train.objectives._pairwise import PairOptions, Pairwise, Terms

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PolyOptions(PairOptions):
    #: weight of the polynomial term: about 8 for noisy labels, 0 is DPO
    alpha: float = 1.0


class Poly(Pairwise):
    """Poly-DPO loss [G] for pairs; log 2 + alpha / 2 where policy = reference."""

    Options = PolyOptions

    def of_z(self, terms: Terms) -> Tensor:
        from torch.nn.functional import logsigmoid

        return -logsigmoid(terms.z) + self.options.alpha * (-terms.z).sigmoid()


plugin = Poly
