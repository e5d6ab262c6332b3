"""The head of outfit_compat: scores from embeddings how well an item fits the other items of an outfit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import leaky_relu

from prefkit.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


class OutfitHead(nn.Module):
    """score = h(u) . h(f) + b . f + b0, with h(x) = LeakyReLU(W2 LeakyReLU(W1 x)).

    This is FashionDPO's head (arXiv 2504.12900, section 4.2): f is the item's embedding, u the mean embedding of the
    other items. `pool: heads` replaces h(u) with the mean of the other items' h.
    """

    def __init__(self, width: int, hidden: int, out: int, pool: str) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, hidden), nn.Linear(hidden, out)
        self.own = nn.Linear(width, 1)
        self.pool = pool

    def h(self, x: Tensor) -> Tensor:
        return leaky_relu(self.second(leaky_relu(self.first(x))))

    def context(self, others: Tensor, mask: Tensor) -> Tensor:
        """Return the pooled h [B, out] of the other items [B, L, D]; mask [B, L] has at least one item per row."""
        weight = (mask / mask.sum(1, keepdim=True))[..., None]
        if self.pool == "heads":
            return (self.h(others) * weight).sum(1)
        return self.h((others * weight).sum(1))

    def forward(self, context: Tensor, item: Tensor) -> Tensor:
        """Return scores [B] for items [B, D], or [B, C] for choices [B, C, D]. context: [B, out]."""
        if item.dim() == 3:
            context = context[:, None]
        return (context * self.h(item)).sum(-1) + self.own(item)[..., 0]

    @classmethod
    def of(cls, state: dict[str, Tensor], pool: str, where: str) -> OutfitHead:
        """Build a head from its weights. Raises UsageError if they are not those of a head."""
        try:
            hidden, width = state["first.weight"].shape
            head = cls(width, hidden, state["second.weight"].shape[0], pool)
            head.load_state_dict(state)
        except (KeyError, ValueError, RuntimeError) as error:
            text = " ".join(str(error).split())[:200]
            raise UsageError(
                f"{where} has no weights for outfit_compat ({text}). Run `prefkit fit outfit_compat` again."
            ) from error
        return head.eval()


def others_of(embedded: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad B tensors [L_b, D] to one [B, L, D]; return it with its mask [B, L] float32."""
    longest = max(len(rows) for rows in embedded)
    padded = torch.zeros(len(embedded), longest, embedded[0].shape[1])
    mask = torch.zeros(len(embedded), longest)
    for b, rows in enumerate(embedded):
        padded[b, : len(rows)], mask[b, : len(rows)] = rows, 1.0
    return padded, mask
