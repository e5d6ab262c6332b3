"""Common part of the pairwise objectives: the margin z, computed from four errors per pair, and the metrics.

    a = r - e,    h = a_w - a_l,    z = (beta / 2) h,    loss = of_z + sft e_w

e_w, e_l  the policy's squared errors on winner and loser, means over the latent elements, at one shared time and noise
r_w, r_l  the reference's errors at the same time and noise
a         advantage of an image, above 0 if the policy's error is smaller than the reference's
beta      how strongly the policy is held to the reference; it has the same meaning in all objectives that use z
sft       weight of the winner's error in the loss, which keeps winners from getting worse while the margin grows

auto_beta lowers beta as margins grow, so that the factor sigmoid(-z) in DPO's gradient stays near AIM for the average
pair: beta_k = 2 logit(1 - AIM) / m_k, between beta / 100 and beta. m_k is the running mean of |h| over the global
batches before step k, so beta does not depend on the split into micro-batches or processes. SimpleTuner has a similar
option, on summed errors; no paper describes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from prefkit.types import Errors, Groups

AIM = 0.2
MEMORY = 0.95
LOWEST = 0.01


@dataclass(frozen=True)
class PairOptions:
    #: how strongly the policy is held to the reference; errors are means over the latent elements
    beta: float = 2000.0
    #: weight of the winner's error, which is added to the loss (SFT)
    sft: float = 0.0
    #: lower beta as margins grow, so that sigmoid(-margin) stays near 0.2; `beta` is then the upper limit
    auto_beta: bool = False


@dataclass(frozen=True)
class Terms:
    """Quantities of G pairs, each [G]. win, lose: advantages. p: probability that the winner is better."""

    z: Tensor
    win: Tensor
    lose: Tensor
    e_w: Tensor
    e_l: Tensor
    beta: float
    p: Tensor
    score_gap: Tensor


def sides(values: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
    """Split values [2 G, ...], in any order, into (winners, losers), each [G, ...] in the order of the groups."""
    order = (2 * groups.index + groups.rank).argsort()
    win, lose = values[order].unflatten(0, (-1, 2)).unbind(1)
    return win, lose


def pair_metrics(z: Tensor, win: Tensor, lose: Tensor) -> dict[str, Tensor]:
    """Return the metrics of G pairs, each [G]; a margin of 0 counts as half correct."""
    accuracy = (z > 0).float() + 0.5 * (z == 0).float()
    metrics = {"implicit_accuracy": accuracy, "margin": z, "win_advantage": win, "lose_advantage": lose}
    return {name: value.detach() for name, value in metrics.items()}


class Pairwise:
    """An objective on pairs against a frozen reference; subclasses define `of_z`."""

    Options: type = PairOptions
    shape = "pair"
    reference = "frozen"
    needs_residual = False

    def __init__(self, options: Any) -> None:
        self.options = options
        self.gap = 0.0  # running mean of |h|

    def of_z(self, terms: Terms) -> Tensor:
        """Return the loss [G] of G pairs."""
        raise NotImplementedError

    @property
    def beta(self) -> float:
        most = self.options.beta
        if not self.options.auto_beta or self.gap == 0:
            return most
        return min(most, max(LOWEST * most, 2 * math.log((1 - AIM) / AIM) / self.gap))

    def loss(self, policy: Errors, reference: Errors | None, groups: Groups) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss [G] and metrics, each [G]. policy, reference: errors [2 G]."""
        assert reference is not None
        win, lose = sides(reference.mean - policy.mean, groups)
        e_w, e_l = sides(policy.mean, groups)
        p, gap = sides(groups.p, groups)[0], sides(groups.score_gap, groups)[0]
        beta = self.beta
        z = beta / 2 * (win - lose)
        loss = self.of_z(Terms(z, win, lose, e_w, e_l, beta, p, gap))
        metrics = pair_metrics(z, win, lose)
        if self.options.sft:
            loss = loss + self.options.sft * e_w
        if self.options.auto_beta:
            metrics |= {"gap": (win - lose).detach().abs(), "beta": win.detach() * 0 + beta}
        return loss, metrics

    # -- state that changes between steps --------------------------------------------------------------------------
    def observe(self, means: Mapping[str, float]) -> None:
        if self.options.auto_beta:
            gap = means["gap"]
            self.gap = gap if self.gap == 0 else MEMORY * self.gap + (1 - MEMORY) * gap

    def state(self) -> dict[str, float]:
        return {"gap": self.gap}

    def load(self, state: Mapping[str, float]) -> None:
        self.gap = state["gap"]
