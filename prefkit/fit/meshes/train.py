"""Train a network that ranks the hypotheses of a request: the losses, the steps and the choice of the best weights.

    pairwise   sum over the pairs of a request of -ln sigmoid(5 (s_better - s_worse)), as HMR-Scorer (ADHMR, arXiv 2505.10250)
    listwise   -ln of the Plackett-Luce probability of the true order, with scores 5 s (ListMLE, Xia et al., ICML 2008)

Both losses are summed over the error measures and averaged over requests. Each request in a step is mirrored with
probability 0.5.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import softplus

from prefkit.errors import TrainingError
from prefkit.mesh.ranking.ranker import MeshRanker
from prefkit.output import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from prefkit.fit.meshes.hypotheses import Hypotheses

SLOPE = 5.0  # slope of the sigmoid, as published
VALIDATE_EVERY = 50  # steps


def pairwise(scores: Tensor, errors: Tensor) -> Tensor:
    """Return the loss of scores [R, M] for errors [R, M, E] (NaN: no hypothesis). Equal errors are not a pair."""
    better = errors[:, :, None] < errors[:, None]  # False for NaN
    gaps = scores[:, :, None] - scores[:, None]
    return (softplus(-SLOPE * gaps) * better.sum(-1)).sum((1, 2)).mean()


def listwise(scores: Tensor, errors: Tensor) -> Tensor:
    """Return the loss of scores [R, M] for errors [R, M, E] (NaN: no hypothesis)."""
    order = errors.nan_to_num(nan=torch.inf).argsort(dim=1)
    present = ~errors.isnan()
    sorted_scores = torch.where(present, SLOPE * scores[..., None], -1e9).gather(1, order)
    rest = sorted_scores.flip(1).logcumsumexp(1).flip(1)  # log-sum-exp over this hypothesis and all worse ones
    return torch.where(present.gather(1, order), rest - sorted_scores, 0.0).sum((1, 2)).mean()


LOSSES = {"pairwise": pairwise, "listwise": listwise}


def accuracy(scores: Tensor, errors: Tensor) -> float:
    """Return the fraction of pairs (of all requests and measures) that scores [R, M] rank correctly; a tie is half."""
    better = (errors[:, :, None] < errors[:, None]).sum(-1)
    right = (scores[:, :, None] > scores[:, None]) + 0.5 * (scores[:, :, None] == scores[:, None])
    return float((right * better).sum() / better.sum())


def train(data: Hypotheses, splits: dict[str, list[int]], o: Any) -> tuple[MeshRanker, dict[str, Any]]:
    """Train until the pair accuracy on validation requests stops rising; return the best network and the curve.

    o: the options loss, steps, batch_size, learning_rate, width, dropout, weight_decay, patience and seed. Raises
    TrainingError for a loss that is not finite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(o.seed)
        net = MeshRanker(data.features.shape[-1], o.width, o.dropout)
        rows = torch.tensor(splits["train"])
        net.standardise(data.features[rows][data.present[rows]])
        return _steps(net, data, rows, torch.tensor(splits["validation"]), o)


def _steps(net: MeshRanker, data: Hypotheses, rows: Tensor, held: Tensor, o: Any) -> tuple[MeshRanker, dict[str, Any]]:
    optimizer = torch.optim.AdamW(net.parameters(), o.learning_rate, weight_decay=o.weight_decay)
    best, best_net, curve = -1.0, copy.deepcopy(net), []
    with Progress("fit mesh", o.steps) as progress:
        for step in range(1, o.steps + 1):
            batch = rows[torch.randint(len(rows), (o.batch_size,))]
            flip = torch.rand(o.batch_size, 1, 1) < 0.5
            inputs = torch.where(flip, data.mirrored[batch], data.features[batch])
            loss = LOSSES[o.loss](net(inputs), data.errors[batch])
            if not loss.isfinite():
                raise TrainingError(f"mesh: the loss of step {step} is not finite; lower --learning_rate.")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            progress.update(1, loss=loss.item())
            if step % VALIDATE_EVERY == 0 or step == o.steps:
                curve.append(round(accuracy(scores_of(net, data, held), data.errors[held]), 6))
                if curve[-1] > best:
                    best, best_net = curve[-1], copy.deepcopy(net)
                if len(curve) - 1 - curve.index(best) >= o.patience:
                    break
    course = {"steps": step, "best_step": min((curve.index(best) + 1) * VALIDATE_EVERY, step), "accuracy": curve}
    return best_net.eval(), course


@torch.inference_mode()
def scores_of(net: MeshRanker, data: Hypotheses, rows: Tensor) -> Tensor:
    """Return the scores [R, M] of the hypotheses of requests `rows`; entries without a hypothesis are meaningless."""
    training = net.training
    scores = net.eval()(data.features[rows])
    net.train(training)
    return scores
