"""Learning from a round's recorded steps: policy gradients with advantages, or preferences between two chains.

Every update is the mean over its samples (or pairs), each being the mean over its steps; steps are permuted per sample
and pass, and the first `timestep_fraction` of them is learned from. The optimizer steps once per update, never per step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefkit.config import Online, Train
from prefkit.train.objectives._contract import loss_of
from prefkit.train.online.guards import check_drift
from prefkit.train.online.pairing import chosen_pairs
from prefkit.train.online.rollout import Rollout
from prefkit.train.online.rounds import Round
from prefkit.train.online.updates import Updates
from prefkit.train.policy import Policy

#: what an objective may log; a process without a sample of an update sums along in this order
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
Unit = tuple[int, ...]  # numbers of the samples that share a loss: one, or winner and loser


class StepLearner:
    """objective: of shape "step" or "step_pair"."""

    records = True

    def __init__(
        self,
        config: Train,
        online: Online,
        objective: Any,
        policy: Policy,
        rollout: Rollout,
        updates: Updates,
        pair: Any,
    ) -> None:
        self.config, self.online, self.objective, self.policy = config, online, objective, policy
        self.rollout, self.updates, self.pair = rollout, updates, pair
        self.keep_mean = getattr(objective, "needs_mean", False)

    def learn(self, round_: Round, after_update: Any) -> dict[str, float]:
        """All updates of a round; returns their means. Raises TrainingError where training drifts from sampling."""
        units = self._units(round_)
        sums: dict[str, float] = {}
        weight, drift = 0, 0.0
        for epoch in range(self.online.epochs):
            order = np.random.default_rng([self.config.seed, round_.number, epoch]).permutation(len(units))
            for part in np.array_split(order, self.online.updates):
                if not len(part):
                    continue
                shown, moved = self._accumulate(round_, [units[i] for i in part], epoch)
                if not weight:  # nothing has been learned since the sampling
                    check_drift(moved, self.online.max_drift, round_.number, self.config)
                    drift = moved
                shown |= self.updates.step()
                after_update()
                for key, value in shown.items():
                    sums[key] = sums.get(key, 0.0) + value * len(part)
                weight += len(part)
        return {key: value / weight for key, value in sums.items()} | {"drift": drift}

    def _units(self, round_: Round) -> list[Unit]:
        """In an order that is the same in every process."""
        if self.objective.shape == "step_pair":
            return [(w, lose) for w, lose, _ in chosen_pairs(self.pair, round_)]
        idle = self.objective.reference == "none"  # a zero advantage then has no gradient
        return [(i,) for i, a in enumerate(round_.advantages) if np.isfinite(a) and not (idle and a == 0.0)]

    # -- one update -----------------------------------------------------------------------------------------------
    def _accumulate(self, round_: Round, chunk: Sequence[Unit], epoch: int) -> tuple[dict[str, float], float]:
        """Gradients of one update, the mean over all processes' units; returns what is logged, and the largest drift."""
        device = self.rollout.device
        sums: dict[str, Tensor] = {}
        drift = torch.zeros((), device=device)
        for units, steps, shares in self._micro_batches(round_, chunk, epoch):
            loss, metrics, moved = self._losses(round_, units, steps)
            weights = shares.to(device) / len(chunk)
            self.updates.backward((loss * weights).sum())
            drift = torch.maximum(drift, moved)
            for key, value in {"loss": loss.detach(), **metrics}.items():
                sums[key] = sums.get(key, torch.zeros((), device=device)) + (value * weights).sum()
        processes = self.updates.processes
        nothing = torch.zeros((), device=device)
        own = torch.stack([torch.stack([sums.get(key, nothing), nothing + (key in sums)]) for key in LOGGED])
        totals = processes.sum(own).tolist()  # of all processes, and by how many it is known
        largest = max(processes.sum(_placed(drift, processes)).tolist())
        return {key: total for key, (total, known) in zip(LOGGED, totals, strict=True) if known}, largest

    def _micro_batches(
        self, round_: Round, chunk: Sequence[Unit], epoch: int
    ) -> Iterator[tuple[list[Unit], Tensor, Tensor]]:
        """(units, step of each, 1 / number of its steps) of this process, of one condition signature each."""
        own = {number: place for place, number in enumerate(round_.own)}  # empty: more processes than groups
        buckets: dict[str, list[Unit]] = {}
        for unit in chunk:
            if unit[0] in own:
                assert round_.chains is not None
                key = self.rollout.signature(round_.chains.conditions[own[unit[0]]])
                buckets.setdefault(key, []).append(unit)
        size = self.config.batch_size
        for bucket in buckets.values():
            for start in range(0, len(bucket), size):
                part = bucket[start : start + size]
                order = {unit: self._steps(round_, unit, own[unit[0]], epoch) for unit in part}
                for place in range(max(len(steps) for steps in order.values())):
                    units = [unit for unit in part if place < len(order[unit])]
                    chosen = torch.tensor([order[unit][place] for unit in units])
                    yield units, chosen, torch.tensor([1.0 / len(order[unit]) for unit in units])

    def _steps(self, round_: Round, unit: Unit, place: int, epoch: int) -> list[int]:
        """The steps of a unit to learn from, in the order of this pass."""
        assert round_.chains is not None
        steps = round_.chains.learnable(place).tolist()
        key = [self.config.seed, round_.number, epoch, unit[0]]
        order = np.random.default_rng(key).permutation(len(steps))
        kept = max(1, int(len(steps) * self.online.timestep_fraction)) if steps else 0
        return [steps[i] for i in order[:kept]]

    def _losses(self, round_: Round, units: Sequence[Unit], steps: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Loss [G], metrics [G] each, and the largest difference of log-probability from sampling."""
        assert round_.chains is not None
        own = {number: place for place, number in enumerate(round_.own)}
        sides = len(units[0])
        numbers = [unit[side] for side in range(sides) for unit in units]
        rows, steps = [own[number] for number in numbers], steps.repeat(sides)
        mask = self._mask(round_, numbers)
        reference = None
        if self.objective.reference != "none":
            with torch.no_grad(), self.policy.reference() as net:
                reference, _ = self.rollout.transition(net, round_.chains, rows, steps, False)
        new, old = self.rollout.transition(self.policy.net, round_.chains, rows, steps, self.keep_mean)
        clip = self.online.advantage_clip
        advantage = torch.tensor(round_.advantages[numbers], dtype=torch.float32).clamp(-clip, clip)
        loss, metrics = loss_of(
            self.objective, len(units), replace(new, mask=mask), old, reference, advantage.to(new.log_prob.device)
        )
        return loss, metrics, (new.log_prob.detach() - old.log_prob).abs().max()

    def _mask(self, round_: Round, numbers: Sequence[int]) -> Tensor | None:
        if not round_.masks:
            return None
        return torch.stack([round_.masks[number] for number in numbers]).to(self.rollout.device)


def _placed(value: Tensor, processes: Any) -> Tensor:
    """A process's number in its own place, so that a sum over processes gathers them."""
    found = torch.zeros(processes.count, device=value.device)
    found[processes.rank] = value
    return found
