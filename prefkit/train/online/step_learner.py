"""Learning from a round's recorded steps: policy gradients from advantages, or preferences between two chains.

An update's loss is the mean over its samples (or pairs); a sample's loss is the mean over its denoising steps. In each
pass, a sample's steps are permuted, and the fraction `timestep_fraction` is used. Each update is one optimizer step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefkit.config import Online, Train
from prefkit.train.objectives._contract import loss_of
from prefkit.train.online.checks import check_drift
from prefkit.train.online.pair_learner import PairChooser
from prefkit.train.online.rollout import Rollout
from prefkit.train.online.rounds import Round
from prefkit.train.optimizers import PolicyOptimizer

#: metrics that an objective may log, in a fixed order, so that processes without samples can join the sums
LOGGED = (
    "loss",
    "ratio",
    "approx_kl",
    "clip_high",
    "clip_low",
    "kl",
    "implicit_accuracy",
    "margin",
    "log_ratio",
    "clamped",
)
Unit = tuple[int, ...]  # indices of the samples of one loss term: one sample, or winner and loser


class StepLearner:
    """Learns with objectives of shape "step" or "step_pair". pairs: chooser of the pairs for "step_pair"."""

    records = True

    def __init__(
        self,
        config: Train,
        online: Online,
        objective: Any,
        rollout: Rollout,
        optimizer: PolicyOptimizer,
        pairs: PairChooser | None,
    ) -> None:
        self.config, self.online, self.objective, self.policy = config, online, objective, optimizer.policy
        self.rollout, self.optimizer, self.pairs = rollout, optimizer, pairs
        self.processes = optimizer.processes
        self.keep_mean = getattr(objective, "needs_mean", False)

    def learn(self, round_: Round, update: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Make all updates of a round and return the means of their metrics.

        update: function that makes the optimizer step, called after each gradient computation. Raises TrainingError
        if log-probabilities in training differ from those in sampling before the first update.
        """
        units = self._units(round_)
        sums: dict[str, float] = {}
        weight, drift = 0, 0.0
        for epoch in range(self.online.epochs):
            order = np.random.default_rng([self.config.seed, round_.number, epoch]).permutation(len(units))
            for part in np.array_split(order, self.online.updates):
                if not len(part):
                    continue
                metrics, largest = self._accumulate(round_, [units[i] for i in part], epoch)
                if not weight:  # before the first update, policy and sampling policy are equal
                    check_drift(largest, self.online.max_drift, round_.number, self.config)
                    drift = largest
                for key, value in (metrics | update()).items():
                    sums[key] = sums.get(key, 0.0) + value * len(part)
                weight += len(part)
        return {key: value / weight for key, value in sums.items()} | {"drift": drift}

    def _units(self, round_: Round) -> list[Unit]:
        """Return the round's units (samples or pairs), in the same order in every process."""
        if self.pairs is not None:
            return [(win, lose) for win, lose, _ in self.pairs.choose(round_)]
        skip_zero = self.objective.reference == "none"  # without a reference, an advantage of 0 has no gradient
        return [(i,) for i, a in enumerate(round_.advantages) if np.isfinite(a) and not (skip_zero and a == 0.0)]

    # -- one update -----------------------------------------------------------------------------------------------
    def _accumulate(self, round_: Round, chunk: Sequence[Unit], epoch: int) -> tuple[dict[str, float], float]:
        """Compute an update's gradients, averaged over all processes' units; return metrics and the largest drift."""
        device, processes = self.rollout.device, self.processes
        sums: dict[str, Tensor] = {}
        drifts = torch.zeros(processes.count, device=device)  # each process fills its own entry
        for units, steps, shares in self._micro_batches(round_, chunk, epoch):
            loss, metrics, drift = self._losses(round_, units, steps)
            weights = shares.to(device) / len(chunk)
            self.optimizer.backward((loss * weights).sum())
            drifts[processes.rank] = torch.maximum(drifts[processes.rank], drift)
            for key, value in {"loss": loss.detach(), **metrics}.items():
                sums[key] = sums.get(key, torch.zeros((), device=device)) + (value * weights).sum()
        zero = torch.zeros((), device=device)
        local = torch.stack([torch.stack([sums.get(key, zero), zero + (key in sums)]) for key in LOGGED])
        totals = processes.sum(local).tolist()  # each metric's sum, and the number of processes that have it
        largest = max(processes.sum(drifts).tolist())
        processes.sum_gradients(self.policy.parameters())
        return {key: total for key, (total, known) in zip(LOGGED, totals, strict=True) if known}, largest

    def _micro_batches(
        self, round_: Round, chunk: Sequence[Unit], epoch: int
    ) -> Iterator[tuple[list[Unit], Tensor, Tensor]]:
        """Yield micro-batches of one condition signature: (units, a step of each, 1 / number of steps of each)."""
        rows = round_.rows  # empty if there are more processes than groups
        buckets: dict[str, list[Unit]] = {}
        for unit in chunk:
            if unit[0] in rows:
                assert round_.chains is not None
                key = self.rollout.signature(round_.chains.conditions[rows[unit[0]]])
                buckets.setdefault(key, []).append(unit)
        size = self.config.batch_size
        for bucket in buckets.values():
            for start in range(0, len(bucket), size):
                part = bucket[start : start + size]
                order = {unit: self._steps(round_, unit, rows[unit[0]], epoch) for unit in part}
                for position in range(max(len(steps) for steps in order.values())):
                    units = [unit for unit in part if position < len(order[unit])]
                    steps = torch.tensor([order[unit][position] for unit in units])
                    yield units, steps, torch.tensor([1.0 / len(order[unit]) for unit in units])

    def _steps(self, round_: Round, unit: Unit, row: int, epoch: int) -> list[int]:
        """Return the steps of a unit that this pass learns from, in order."""
        assert round_.chains is not None
        steps = round_.chains.learnable(row).tolist()
        order = np.random.default_rng([self.config.seed, round_.number, epoch, unit[0]]).permutation(len(steps))
        count = max(1, int(len(steps) * self.online.timestep_fraction)) if steps else 0
        return [steps[i] for i in order[:count]]

    def _losses(self, round_: Round, units: Sequence[Unit], steps: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return the loss [G], metrics, each [G], and the largest change of a log-probability since sampling."""
        chains, local = round_.chains, round_.rows
        assert chains is not None
        members = len(units[0])
        samples = [unit[member] for member in range(members) for unit in units]
        rows, steps = [local[sample] for sample in samples], steps.repeat(members)
        reference = None
        if self.objective.reference != "none":
            with torch.no_grad(), self.policy.reference() as net:
                reference, _ = self.rollout.transition(net, chains, rows, steps, False)
        new, old = self.rollout.transition(self.policy.net, chains, rows, steps, self.keep_mean)
        if round_.masks:
            new = replace(new, mask=torch.stack([round_.masks[sample] for sample in samples]).to(self.rollout.device))
        clip = self.online.advantage_clip
        advantage = torch.tensor(round_.advantages[samples], dtype=torch.float32).clamp(-clip, clip)
        advantage = advantage.to(new.log_prob.device)
        loss, metrics = loss_of(self.objective, len(units), new, old, reference, advantage)
        return loss, metrics, (new.log_prob.detach() - old.log_prob).abs().max()
