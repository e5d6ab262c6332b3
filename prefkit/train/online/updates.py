"""Optimizer steps of online training: rate, clipping, fp16's scale, and what stops a training that has gone wrong."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from prefkit.config import Train
from prefkit.distributed import Processes
from prefkit.errors import TrainingError
from prefkit.train import optimizers
from prefkit.train.policy import Policy
from prefkit.train.trainer import SKIPPED, rate_factor


class Updates:
    """Optimizer steps on the policy. total: optimizer steps of the whole training, for the schedule of the rate."""

    def __init__(self, config: Train, policy: Policy, processes: Processes, total: int, name: str) -> None:
        self.config, self.policy, self.processes, self.name = replace(config, steps=total), policy, processes, name
        device = processes.device.type
        self.optimizer = optimizers.make(config, policy.parameters(), device)
        self.scaler = torch.amp.GradScaler(device, init_scale=256.0, enabled=config.precision == "fp16")
        self.count = self.skipped = 0

    def backward(self, loss: torch.Tensor) -> None:
        self.scaler.scale(loss).backward()

    def step(self, summed: bool = False) -> dict[str, float]:
        """Clip and step, with gradients summed over processes if they are not yet `summed`.

        Raises TrainingError where they are not finite, or all zero at the first update.
        """
        if not summed:
            self.processes.sum_gradients(self.policy.parameters())
        self.scaler.scale(torch.zeros((), device=self.processes.device))  # else a process without samples has no scale
        rate = self.config.learning_rate * rate_factor(self.config, self.count)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_grad_norm).item()
        finite = math.isfinite(norm)
        self.skipped = 0 if finite else self.skipped + 1
        if not finite and (not self.scaler.is_enabled() or self.skipped == SKIPPED):
            raise TrainingError(
                f"train {self.name}: the gradient of update {self.count + 1} is not finite, so training has stopped at "
                "the round's start. Try a smaller learning_rate, or precision bf16 or no instead of fp16."
            )
        if self.count == 0 and norm == 0.0:
            raise TrainingError(
                f"train {self.name}: the first update has no gradient at all, so nothing would be learned. Either every "
                "advantage is 0 (a reward that is the same for all samples), or lora.targets miss what the denoiser runs."
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if finite:
            self.policy.follow()
        self.count += 1
        return {"grad_norm": norm, "lr": rate}

    def state(self) -> dict[str, Any]:
        moving = self.policy.average  # of an objective that asks for a moving reference
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(), "moving": moving}

    def load(self, state: dict[str, Any], count: int) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.policy.load_average(state.get("moving", []))
        self.count = count
