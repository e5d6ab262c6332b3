"""Optimizers by name, and the optimizer steps that offline and online training share.

adamw      torch.optim.AdamW: 8 bytes of state per trained parameter
adamw8bit  bitsandbytes' AdamW: 2 bytes of state per parameter (Dettmers et al. 2022, arXiv:2110.02861; blocks of 256
           share a scale; tensors below `min_8bit_size` = 4096 elements, such as small adapters, keep float32 states)
adafactor  torch.optim.Adafactor: one row and one column of state per matrix (Shazeer and Stern 2018, arXiv:1804.04235);
           its steps are relative to the size of the weights, so learning_rate means a relative change

Other optimizers are given as package.module:Class or file.py:Class. `learning_rate` and `schedule` set its `lr`.
"""

from __future__ import annotations

import inspect
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import util
from typing import Any

import torch

from prefkit import registry
from prefkit.config import Train
from prefkit.distributed.collectives import Processes
from prefkit.errors import UsageError
from prefkit.train import fsdp
from prefkit.train.policy import Policy

NAMED = {
    "adamw": "torch.optim:AdamW",
    "adamw8bit": "bitsandbytes.optim:AdamW8bit",
    "adafactor": "torch.optim:Adafactor",
}
EXTRAS = {"bitsandbytes": "8bit"}  # package -> the extra of prefkit that installs it
FUSED_ON = ("cpu", "cuda")
SCHEDULES = ("constant", "cosine", "linear")
#: limit on skipped fp16 steps in a row: each halves the loss scale, so beyond the limit, the cause is not overflow
MAX_SKIPPED = 50
IN_FLIGHT = 4  # sums of gradients that run at the same time; each holds a copy of its bucket


def check(name: str, config: Train) -> None:
    """Raise UsageError, before anything is loaded, for an optimizer that cannot be created or used."""
    where = f"train.{name}.optimizer"
    if ":" not in config.optimizer and config.optimizer not in NAMED:
        raise UsageError(
            f"{where}: {config.optimizer!r} is unknown; choose {', '.join(NAMED)}, or a class as package.module:Class "
            "or file.py:Class."
        )
    optimizer = make(config, [torch.nn.Parameter(torch.zeros(1))], "cpu")
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise UsageError(
            f"{where}: {config.optimizer} evaluates the loss several times per step (a closure), but training "
            "computes the loss once per step. Choose another optimizer."
        )
    if hasattr(optimizer, "eval"):
        raise UsageError(
            f"{where}: {config.optimizer} keeps separate weights for evaluation (schedule-free), so training would "
            "measure, save and export the wrong ones. Choose another optimizer."
        )


def make(config: Train, parameters: Sequence[Any], device: str) -> torch.optim.Optimizer:
    """Create the optimizer. parameters: parameters, or groups {"params": parameters}; device: cpu | cuda | mps.

    Raises UsageError, PluginError.
    """
    arguments: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer == "adamw":
        arguments["fused"] = device in FUSED_ON  # one kernel for all parameters
    arguments |= config.optimizer_options
    try:
        return _load_class(config.optimizer)(parameters, **arguments)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"optimizer {config.optimizer} does not accept its arguments ({', '.join(arguments)}): {error}. Fix "
            "train.NAME.optimizer_options."
        ) from error


def _load_class(name: str) -> Any:
    path = NAMED.get(name, name)
    package = path.split(".")[0]
    if package in EXTRAS and util.find_spec(package) is None:
        raise UsageError(
            f"optimizer {name} needs {package}: pip install 'prefkit[{EXTRAS[package]}]' (or: pip install {package})."
        )
    kind = registry.load_class("optimizer", path)
    if not issubclass(kind, torch.optim.Optimizer):
        raise UsageError(
            f"optimizer {name} is not a subclass of torch.optim.Optimizer. Set train.NAME.optimizer to one."
        )
    return kind


def rate_factor(config: Train, step: int) -> float:
    """Return the factor by which warm-up and schedule scale the learning rate at a step (0-based)."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "constant":
        return 1.0
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1 - done


class GradientSum:
    """Sums gradients over processes while the backward pass is still running.

    Parameters are divided into buckets, the last parameters first, because their gradients are computed first. A bucket
    is summed when all its gradients exist and all buckets before it have been started, so that every process sums them
    in the same order. A missing gradient counts as zero.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], processes: Processes, size: int = 1 << 23) -> None:
        """size: elements of a bucket (approximately)."""
        self.processes, self.buckets = processes, _buckets(parameters, size)
        self.bucket_of = {id(p): number for number, bucket in enumerate(self.buckets) for p in bucket}
        self.missing: list[int] = []  # gradients that each bucket still lacks; empty outside of `during`
        self.started = 0
        self.running: deque[tuple[list[torch.nn.Parameter], torch.Tensor, Callable[[], None]]] = deque()
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._computed)

    @contextmanager
    def during(self) -> Iterator[None]:
        """Context for the last backward pass of a step: gradients are summed as soon as they are complete."""
        self.missing = [len(bucket) for bucket in self.buckets]
        try:
            yield
        finally:
            self.missing = []

    def finish(self) -> None:
        """Sum the remaining gradients and wait for all sums."""
        while self.started < len(self.buckets):
            self._start()
        while self.running:
            self._store()
        self.started = 0

    def _computed(self, parameter: torch.Tensor) -> None:
        if not self.missing:
            return
        self.missing[self.bucket_of[id(parameter)]] -= 1
        while self.started < len(self.buckets) and self.missing[self.started] == 0:
            self._start()

    def _start(self) -> None:
        bucket = self.buckets[self.started]
        self.started += 1
        for parameter in bucket:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([parameter.grad.flatten() for parameter in bucket if parameter.grad is not None])
        self.running.append((bucket, flat, self.processes.start_sum(flat)))
        if len(self.running) > IN_FLIGHT:
            self._store()

    def _store(self) -> None:
        bucket, flat, wait = self.running.popleft()
        wait()
        for parameter, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
            assert parameter.grad is not None
            parameter.grad.copy_(part.view_as(parameter.grad))


def _buckets(parameters: Sequence[torch.nn.Parameter], size: int) -> list[list[torch.nn.Parameter]]:
    """Divide parameters, the last first, into lists of one dtype and about `size` elements."""
    buckets: list[list[torch.nn.Parameter]] = []
    elements = 0
    for parameter in reversed(parameters):
        if not buckets or elements >= size or buckets[-1][0].dtype != parameter.dtype:
            buckets.append([])
            elements = 0
        buckets[-1].append(parameter)
        elements += parameter.numel()
    return buckets


class PolicyOptimizer:
    """Makes a policy's optimizer steps: learning rate, gradient clipping, fp16 loss scaling, moving reference.

    config.steps: number of optimizer steps in the full training run, for the learning-rate schedule.
    """

    def __init__(self, config: Train, policy: Policy, processes: Processes) -> None:
        self.config, self.policy, self.processes = config, policy, processes
        device = processes.device.type
        self.rates = [config.learning_rate]
        parameters: Any = policy.parameters()
        if policy.text_encoders and config.lora is not None:
            own, text = config.lora.text_encoder_learning_rate, policy.text_parameters()
            self.rates.append(config.learning_rate if own is None else own)
            parameters = [{"params": parameters[: len(parameters) - len(text)]}, {"params": text}]
        self.optimizer = make(config, parameters, device)
        # a beta in the thousands makes gradients large, so the loss scale starts low; GradScaler raises it
        self.scaler = torch.amp.GradScaler(device, init_scale=256.0, enabled=config.precision == "fp16")
        self.count = self.skipped = self.skipped_in_a_row = 0

    def backward(self, loss: torch.Tensor) -> None:
        self.scaler.scale(loss).backward()

    def step(self) -> dict[str, float] | None:
        """Clip the gradients (summed over processes) and make a step; return gradient norm and learning rate.

        With fp16, a step with infinite or NaN gradients is skipped and counted; at the last of MAX_SKIPPED skipped
        steps in a row, the result is None. Without fp16, the result is None at the first such step.
        """
        self.scaler.scale(torch.zeros((), device=self.processes.device))  # a process without samples has no scale yet
        rates = [rate * rate_factor(self.config, self.count) for rate in self.rates]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.scaler.unscale_(self.optimizer)
        clipped = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_grad_norm)
        norm = fsdp.full(clipped).item()
        overflow = not math.isfinite(norm)
        self.skipped += overflow
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if overflow else 0
        if overflow and (not self.scaler.is_enabled() or self.skipped_in_a_row == MAX_SKIPPED):
            return None
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if not overflow and self.policy.average is not None:
            self.policy.average.update()
        self.count += 1
        return {"grad_norm": norm} | dict(zip(("lr", "text_encoder_lr"), rates))

    def state(self) -> dict[str, Any]:
        counts = [self.count, self.skipped, self.skipped_in_a_row]
        state = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(), "counts": counts}
        return state | {"average": self.policy.average.weights if self.policy.average is not None else []}

    def load(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(fsdp.shard_optimizer_state(state["optimizer"], self.policy.parameters()))
        self.scaler.load_state_dict(state["scaler"])
        if self.policy.average is not None:
            self.policy.average.load(state["average"])
        self.count, self.skipped, self.skipped_in_a_row = state["counts"]
