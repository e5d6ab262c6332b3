"""The head of outfit_compat: embeddings of an outfit's other items and of an item -> how well it goes with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import leaky_relu

from prefkit.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


class OutfitHead(nn.Module):
    """score = h(u) . h(f) + b . f + b0, with h(x) = LeakyReLU(W2 LeakyReLU(W1 x)), one h for both sides.

    That is FashionDPO's head (arXiv 2504.12900, section 4.2), whose u is the mean of the others' embeddings.
    `pool: heads` takes the mean of the others' h instead of the h of their mean.
    """

    def __init__(self, width: int, hidden: int, out: int, pool: str) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, hidden), nn.Linear(hidden, out)
        self.own = nn.Linear(width, 1)
        self.pool = pool

    def h(self, x: Tensor) -> Tensor:
        return leaky_relu(self.second(leaky_relu(self.first(x))))

    def context(self, others: Tensor, there: Tensor) -> Tensor:
        """[B, L, D] and mask [B, L] (at least one a row) -> [B, out]."""
        weight = (there / there.sum(1, keepdim=True))[..., None]
        if self.pool == "heads":
            return (self.h(others) * weight).sum(1)
        return self.h((others * weight).sum(1))

    def forward(self, context: Tensor, item: Tensor) -> Tensor:
        """[B, out] with items [B, D] -> [B]; or with choices [B, C, D] -> [B, C]."""
        if item.dim() == 3:
            context = context[:, None]
        return (context * self.h(item)).sum(-1) + self.own(item)[..., 0]

    @classmethod
    def of(cls, state: dict[str, Tensor], pool: str, where: str) -> OutfitHead:
        """Raises UsageError for tensors that are no such head."""
        try:
            hidden, width = state["first.weight"].shape
            head = cls(width, hidden, state["second.weight"].shape[0], pool)
            head.load_state_dict(state)
        except (KeyError, ValueError, RuntimeError) as error:
            text = " ".join(str(error).split())[:200]
            raise UsageError(f"{where} holds no head of outfit_compat: {text}.") from error
        return head.eval()


def others_of(embedded: list[Tensor]) -> tuple[Tensor, Tensor]:
    """[L_b, D] a row -> padded [B, L, D] and its mask [B, L] float32."""
    longest = max(len(rows) for rows in embedded)
    padded = torch.zeros(len(embedded), longest, embedded[0].shape[1])
    there = torch.zeros(len(embedded), longest)
    for b, rows in enumerate(embedded):
        padded[b, : len(rows)], there[b, : len(rows)] = rows, 1.0
    return padded, there
