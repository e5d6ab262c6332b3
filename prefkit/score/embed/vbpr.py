"""VBPR (He & McAuley, "VBPR: Visual Bayesian Personalized Ranking from Implicit Feedback", AAAI 2016), the model.

    x_ui = beta_i + gamma_u . gamma_i + theta_u . (E f_i) + beta' . f_i                                      (eq. 4)

alpha and beta_u of the paper are left out: they cancel between two items of one user. P(u prefers i to j) is
sigmoid(x_ui - x_uj). f_i [D] are visual features, E is kept as [D, k2].
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
        """Raises UsageError for other tensors, or shapes that do not go together."""
        names = [f.name for f in fields(cls)]
        missing = [name for name in names if name not in state]
        if missing:
            raise UsageError(f"{where} holds no VBPR: {', '.join(missing)} is not in it.")
        found = cls(**{name: state[name].float() for name in names})
        users, items, width = len(found.gamma_user), len(found.gamma_item), len(found.projection)
        wanted = (users, items, width, found.gamma_user.shape[1], found.theta_user.shape[1])
        given = (len(found.theta_user), len(found.item_bias), len(found.visual_bias))
        if (*given, found.gamma_item.shape[1], found.projection.shape[1]) != wanted:
            raise UsageError(f"{where} holds no VBPR: its shapes do not go together.")
        return found

    def visual(self, users: Tensor, features: Tensor) -> Tensor:
        """[B]: theta_u . (E f) + beta' . f, user b with features b; the score of an item that nobody has met."""
        return (self.theta_user[users] * (features @ self.projection)).sum(-1) + features @ self.visual_bias

    def known(self, users: Tensor, items: Tensor) -> Tensor:
        """[B]: beta_i + gamma_u . gamma_i, what interactions add to the visual part."""
        return self.item_bias[items] + (self.gamma_user[users] * self.gamma_item[items]).sum(-1)

    def table(self, users: Tensor, features: Tensor) -> Tensor:
        """[len(users), N]: x_ui of all items."""
        constant = self.item_bias + features @ self.visual_bias
        own = self.gamma_user[users] @ self.gamma_item.T + self.theta_user[users] @ (features @ self.projection).T
        return constant + own


@dataclass(frozen=True)
class Scaling:
    """(features - shift) / factor, of unit vectors where `unit`, the same for items and for new images."""

    unit: bool
    shift: Tensor  # [D]
    factor: float

    def __call__(self, features: Tensor) -> Tensor:
        import torch

        rows = torch.nn.functional.normalize(features, dim=-1) if self.unit else features
        return (rows - self.shift) / self.factor
