"""Model of VBPR (He & McAuley, "VBPR: Visual Bayesian Personalized Ranking from Implicit Feedback", AAAI 2016).

    x_ui = beta_i + gamma_u . gamma_i + theta_u . (E f_i) + beta' . f_i                                      (eq. 4)

alpha and beta_u of the paper are omitted: they cancel between two items of one user. P(u prefers i to j) is
sigmoid(x_ui - x_uj). f_i [D] are visual features, E has shape [D, k2].
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from prefkit.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Vbpr:
    """Parameters, float32. U users, N items, D features, k latent and k2 visual factors."""

    gamma_user: Tensor  # [U, k]
    gamma_item: Tensor  # [N, k]
    theta_user: Tensor  # [U, k2]
    projection: Tensor  # [D, k2], the paper's E
    visual_bias: Tensor  # [D], the paper's beta'
    item_bias: Tensor  # [N], the paper's beta_i

    def tensors(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def of(cls, state: dict[str, Tensor], where: str) -> Vbpr:
        """Build the model from its weights. Raises UsageError for missing tensors or inconsistent shapes."""
        names = [f.name for f in fields(cls)]
        missing = [name for name in names if name not in state]
        if missing:
            raise UsageError(f"{where} has no VBPR model: {', '.join(missing)} is missing.")
        net = cls(**{name: state[name].float() for name in names})
        users, items, width = len(net.gamma_user), len(net.gamma_item), len(net.projection)
        expected = (users, items, width, net.gamma_user.shape[1], net.theta_user.shape[1])
        lengths = (len(net.theta_user), len(net.item_bias), len(net.visual_bias))
        if (*lengths, net.gamma_item.shape[1], net.projection.shape[1]) != expected:
            raise UsageError(f"{where} has no VBPR model: its shapes are inconsistent.")
        return net

    def visual(self, users: Tensor, features: Tensor) -> Tensor:
        """[B]: theta_u . (E f) + beta' . f, user b with features b; the score of a new item."""
        return (self.theta_user[users] * (features @ self.projection)).sum(-1) + features @ self.visual_bias

    def known(self, users: Tensor, items: Tensor) -> Tensor:
        """[B]: beta_i + gamma_u . gamma_i, the part of the score from interactions."""
        return self.item_bias[items] + (self.gamma_user[users] * self.gamma_item[items]).sum(-1)

    def table(self, users: Tensor, features: Tensor) -> Tensor:
        """[len(users), N]: x_ui of all items."""
        constant = self.item_bias + features @ self.visual_bias
        personal = self.gamma_user[users] @ self.gamma_item.T + self.theta_user[users] @ (features @ self.projection).T
        return constant + personal


@dataclass(frozen=True)
class Scaling:
    """(features - shift) / factor, for items and new images alike. unit: normalise the features first."""

    unit: bool
    shift: Tensor  # [D]
    factor: float

    def __call__(self, features: Tensor) -> Tensor:
        import torch

        rows = torch.nn.functional.normalize(features, dim=-1) if self.unit else features
        return (rows - self.shift) / self.factor
