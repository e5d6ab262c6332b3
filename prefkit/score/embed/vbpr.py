"""The VBPR model (He & McAuley, "VBPR: Visual Bayesian Personalized Ranking from Implicit Feedback", AAAI 2016).

    x_ui = beta_i + gamma_u . gamma_i + theta_u . (E f_i) + beta' . f_i                                      (eq. 4)

The paper's alpha and beta_u are omitted: they cancel in the difference of two items of one user. P(u prefers i to j) is
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
    """The parameters in float32, for U users, N items, D features, k latent factors and k2 visual factors."""

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
            raise UsageError(f"{where} has no VBPR model: it lacks {', '.join(missing)}. Run `prefkit fit vbpr` again.")
        net = cls(**{name: state[name].float() for name in names})
        users, items, width = len(net.gamma_user), len(net.gamma_item), len(net.projection)
        expected = (users, items, width, net.gamma_user.shape[1], net.theta_user.shape[1])
        lengths = (len(net.theta_user), len(net.item_bias), len(net.visual_bias))
        if (*lengths, net.gamma_item.shape[1], net.projection.shape[1]) != expected:
            raise UsageError(f"{where} has tensors whose shapes do not match each other. Run `prefkit fit vbpr` again.")
        return net

    def visual(self, users: Tensor, features: Tensor) -> Tensor:
        """Return theta_u . (E f) + beta' . f [B]: the score of user b for a new item with the features in row b."""
        return (self.theta_user[users] * (features @ self.projection)).sum(-1) + features @ self.visual_bias

    def known(self, users: Tensor, items: Tensor) -> Tensor:
        """Return beta_i + gamma_u . gamma_i [B], the part of the score that only a known item has."""
        return self.item_bias[items] + (self.gamma_user[users] * self.gamma_item[items]).sum(-1)

    def table(self, users: Tensor, features: Tensor) -> Tensor:
        """Return x_ui of all items: [len(users), N]."""
        constant = self.item_bias + features @ self.visual_bias
        personal = self.gamma_user[users] @ self.gamma_item.T + self.theta_user[users] @ (features @ self.projection).T
        return constant + personal


@dataclass(frozen=True)
class Scaling:
    """Scaling of features, (features - shift) / factor. unit: first normalise each row to length 1."""

    unit: bool
    shift: Tensor  # [D]
    factor: float

    def __call__(self, features: Tensor) -> Tensor:
        import torch

        rows = torch.nn.functional.normalize(features, dim=-1) if self.unit else features
        return (rows - self.shift) / self.factor
