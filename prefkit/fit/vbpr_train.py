"""Training of VBPR by Bayesian personalised ranking: loss, epochs and AUC (He & McAuley, AAAI 2016, eqs. 6 to 8)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import logsigmoid

from prefkit.errors import TrainingError
from prefkit.fit.epochs import best_epoch
from prefkit.score.embed.vbpr import Vbpr

if TYPE_CHECKING:
    from torch import Tensor

    from prefkit.fit.interactions import Interactions

USER_BATCH = 256


@dataclass(frozen=True)
class Regularisers:
    """Weights lambda of the penalties lambda/2 * ||.||^2 on the parameters that a triple (user, item, negative) uses.

    `negative_factors` and `negative_bias` multiply `factors` and `bias` for the negative's gamma_j and beta_j. The
    paper uses 1 for both; its authors' code uses 0.1 for `negative_factors`, cornac 0.1 for `negative_bias`.
    """

    factors: float = 0.01
    bias: float = 0.01
    visual: float = 0.0
    negative_factors: float = 1.0
    negative_bias: float = 1.0


def start(users: int, items: int, features: int, k: int, k2: int, seed: int) -> Vbpr:
    """Initialize a model of k latent and k2 visual factors: Xavier-uniform factors, E and beta'; item biases 0."""
    rng = torch.Generator().manual_seed(seed)

    def xavier(a: int, b: int) -> Tensor:
        return (torch.rand(a, b, generator=rng) * 2 - 1) * math.sqrt(6 / (a + b))

    gamma_user, gamma_item, theta = xavier(users, k), xavier(items, k), xavier(users, k2)
    projection, visual = xavier(features, k2), xavier(features, 1)[:, 0]
    return Vbpr(gamma_user, gamma_item, theta, projection, visual, torch.zeros(items))


def bpr_loss(net: Vbpr, features: Tensor, u: Tensor, i: Tensor, j: Tensor, reg: Regularisers) -> Tensor:
    """Return the sum over B triples (user u, chosen item i, negative j) of -ln sigmoid(x_ui - x_uj) plus penalties.

    The penalty of E and beta' is counted once per batch. u, i, j: [B] int64; features [N, D].
    """
    gamma_u, theta_u = net.gamma_user[u], net.theta_user[u]
    gamma_i, gamma_j = net.gamma_item[i], net.gamma_item[j]
    beta_i, beta_j = net.item_bias[i], net.item_bias[j]
    difference = (features[i] - features[j]) @ torch.cat([net.projection, net.visual_bias[:, None]], 1)
    x = beta_i - beta_j + (gamma_u * (gamma_i - gamma_j)).sum(1) + (theta_u * difference[:, :-1]).sum(1)
    x = x + difference[:, -1]
    factors = _square(gamma_u) + _square(theta_u) + _square(gamma_i) + reg.negative_factors * _square(gamma_j)
    biases = _square(beta_i) + reg.negative_bias * _square(beta_j)
    visual = _square(net.projection) + _square(net.visual_bias)
    return (reg.factors * factors + reg.bias * biases + reg.visual * visual) / 2 - logsigmoid(x).sum()


def _square(values: Tensor) -> Tensor:
    return values.pow(2).sum()


def epoch(
    net: Vbpr,
    optimizer: torch.optim.Optimizer,
    features: Tensor,
    data: Interactions,
    reg: Regularisers,
    batch: int,
    rng: np.random.Generator,
) -> float:
    """Train on every interaction once, in random order, each with a new negative. Returns the mean loss per triple."""
    order = rng.permutation(len(data.train))
    users, taken = data.train[order].T
    triples = torch.from_numpy(np.stack([users, taken, data.negatives(users, rng)]))
    total = 0.0
    for u, i, j in zip(*(row.split(batch) for row in triples)):
        loss = bpr_loss(net, features, u, i, j, reg)
        optimizer.zero_grad(set_to_none=True)
        (loss / len(u)).backward()  # type: ignore[no-untyped-call,unused-ignore]
        optimizer.step()
        total += loss.item()
    if not math.isfinite(total):
        raise TrainingError("vbpr: the loss is no longer finite. Lower --learning_rate, or scale the features.")
    return total / len(order)


def auc(net: Vbpr, features: Tensor, data: Interactions, held: np.ndarray, new: bool = False) -> np.ndarray:
    """Return for each held-out (user, item) the fraction of the user's unseen items that score lower: [len(held)].

    Ties count as misses. new: score with the visual terms alone, as for an item without interactions.
    """
    fractions = []
    with torch.no_grad():
        projected, bias = features @ net.projection, features @ net.visual_bias
        for begin in range(0, len(held), USER_BATCH):
            users, items = held[begin : begin + USER_BATCH].T
            u = torch.from_numpy(users)
            scores = bias + net.theta_user[u] @ projected.T
            if not new:
                scores = scores + net.item_bias + net.gamma_user[u] @ net.gamma_item.T
            table = scores.numpy()
            held_scores = table[np.arange(len(users)), items]
            rows, columns = _seen_items(data, users)
            table[rows, columns] = np.inf
            others = len(data.items) - np.bincount(rows, minlength=len(users))
            fractions.append((table < held_scores[:, None]).sum(1) / others)
    return np.concatenate(fractions) if fractions else np.zeros(0)


def _seen_items(data: Interactions, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return all interactions of the users as two arrays: index into `users`, and item."""
    n = len(data.items)
    first, last = np.searchsorted(data.keys, users * n), np.searchsorted(data.keys, (users + 1) * n)
    rows = np.repeat(np.arange(len(users)), last - first)
    positions = np.arange(len(rows)) + np.repeat(first - (np.cumsum(last - first) - (last - first)), last - first)
    return rows, data.keys[positions] - users[rows] * n


def train(
    net: Vbpr, features: Tensor, data: Interactions, reg: Regularisers, settings: Any
) -> tuple[Vbpr, dict[str, Any]]:
    """Train until the validation AUC has not risen for `patience` epochs. Returns the best model, and the AUC by epoch.

    settings: learning_rate, batch_size, epochs, patience, optimizer, seed, validation_users
    """
    rng = np.random.default_rng(settings.seed)
    for tensor in net.tensors().values():
        tensor.requires_grad_(True)
    kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[settings.optimizer]
    optimizer = kind(list(net.tensors().values()), lr=settings.learning_rate)
    held = data.validation
    if len(held) > settings.validation_users:
        held = held[rng.choice(len(held), settings.validation_users, replace=False)]

    def one_epoch() -> tuple[float, float]:
        loss = epoch(net, optimizer, features, data, reg, settings.batch_size, rng)
        return loss, float(auc(net, features, data, held).mean())

    def snapshot() -> Vbpr:
        return Vbpr(**{name: tensor.detach().clone() for name, tensor in net.tensors().items()})

    return best_epoch("fit vbpr", settings, one_epoch, snapshot)
