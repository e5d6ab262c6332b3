"""The network of the scorer `mesh`: a score for each hypothesis, to rank the hypotheses of one request."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from prefkit.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

LIMIT = 10.0  # standardised features are clamped to -LIMIT..LIMIT, so that an outlier cannot dominate


class MeshRanker(nn.Module):
    """An MLP of three hidden layers, [..., F] -> [...]. shift, scale: mean and std [F] of the training features."""

    def __init__(self, features: int, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.shift, self.scale = nn.Buffer(torch.zeros(features)), nn.Buffer(torch.ones(features))
        self.layers = nn.ModuleList([nn.Linear(features, width), nn.Linear(width, width), nn.Linear(width, width)])
        self.last = nn.Linear(width, 1)
        self.dropout = nn.Dropout(dropout)

    def standardise(self, rows: Tensor) -> None:
        """Set `shift` and `scale` from rows [N, F]; a constant feature is ignored."""
        std = rows.std(0)
        self.shift.copy_(rows.mean(0))
        self.scale.copy_(torch.where(std > 1e-6, std, torch.inf))

    def forward(self, features: Tensor) -> Tensor:
        x = ((features - self.shift) / self.scale).clamp(-LIMIT, LIMIT)
        for layer in self.layers:
            x = self.dropout(nn.functional.silu(layer(x)))
        return self.last(x)[..., 0]

    @classmethod
    def of(cls, state: dict[str, Tensor], where: str) -> MeshRanker:
        """Build a network from its weights. Raises UsageError if the tensors do not fit it."""
        try:
            width, features = state["layers.0.weight"].shape
            net = cls(features, width)
            net.load_state_dict(state)
        except (KeyError, ValueError, RuntimeError) as error:
            text = " ".join(str(error).split())[:200]
            raise UsageError(
                f"{where} holds no usable network for the scorer `mesh`: {text}. Fit it again with `prefkit fit mesh`."
            ) from error
        return net.eval()
