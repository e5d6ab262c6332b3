"""What is trained, and the frozen start that it is measured against."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from prefkit.config import Lora, Train
from prefkit.distributed import device_of
from prefkit.errors import TrainingError, UsageError
from prefkit.models.lora import adapters
from prefkit.types import Errors


@dataclass
class Policy:
    """net: the denoiser being trained. start: the adapters that the reference is made of (LoRA).

    frozen: the reference's own network where weights are trained in full and the objective asks for one.
    average: exponential moving averages of the trained parameters, in their order, where the objective asks for a moving
    reference; decay: the share of them that stays at each step. sharded: the parameters are DTensors (sharding.py).
    """

    net: Any
    lora: Lora | None
    start: list[str] = field(default_factory=list)
    frozen: Any = None
    average: list[Tensor] = field(default_factory=list)
    decay: float = 0.0
    sharded: bool = False

    def start_average(self, decay: float) -> None:
        self.decay = decay
        self.average = [parameter.detach().clone() for parameter in self.parameters()]

    def load_average(self, average: list[Tensor]) -> None:
        for own, loaded in zip(self.average, average, strict=True):
            own.copy_(loaded)

    def follow(self) -> None:
        """After a step: average = decay average + (1 - decay) parameter."""
        if self.average:
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters()], 1 - self.decay)

    @contextmanager
    def moving(self) -> Iterator[Any]:
        """with policy.moving() as net: the moving average, as a network to run without gradients."""
        trained = self.parameters()
        own = [parameter.data for parameter in trained]
        try:
            for parameter, average in zip(trained, self.average, strict=True):
                parameter.data = average
            yield self.net
        finally:
            for parameter, data in zip(trained, own, strict=True):
                parameter.data = data

    @contextmanager
    def reference(self) -> Iterator[Any]:
        """with policy.reference() as net: the start, as a network to run without gradients."""
        if self.lora is None:
            yield self.frozen if self.frozen is not None else self.net
            return
        with adapters.layers_active(self._layers, self.start):
            yield self.net

    def parameters(self) -> list[nn.Parameter]:
        """Those that are trained; which they are is settled before the first step."""
        return self._trained

    # a walk through a network takes a millisecond or so, and a step would make several
    @cached_property
    def _trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.net.parameters() if parameter.requires_grad]

    @cached_property
    def _layers(self) -> list[Any]:
        return [layer for _, layer in adapters.lora_layers(self.net)]

    def state(self) -> dict[str, Tensor]:
        """The trained weights, not copied."""
        return adapters.lora_state(self.net) if self.lora is not None else self.net.state_dict()

    def load_state(self, state: dict[str, Tensor]) -> None:
        if self.lora is not None:
            adapters.load_lora_state(self.net, state)
        else:
            self.net.load_state_dict(state)


def make_policy(net: Any, config: Train, frozen: bool) -> Policy:
    """Make `net` trainable as the configuration asks; its output does not change.

    frozen: full weights need a second, frozen network. Raises TrainingError where nothing would be trained, UsageError
    where lora.resume does not know which adapter to continue.
    """
    policy = _adapter(net, config) if config.lora is not None else _full(net, frozen)
    if not any(parameter.numel() for parameter in policy.parameters()):
        raise TrainingError(
            "there is not one trainable parameter. Give lora.rank above 0 and lora.targets that this network has, or "
            "lora: null for full weights."
        )
    if _checkpointed(net, config):
        net.enable_gradient_checkpointing()
    return policy


def _checkpointed(net: Any, config: Train) -> bool:
    """True if the recipe asks for gradient checkpointing or, by default, if the network is a transformer on CUDA."""
    offered = bool(getattr(net, "_supports_gradient_checkpointing", False))
    if config.gradient_checkpointing and not offered:
        raise UsageError(f"train.*.gradient_checkpointing: {type(net).__name__} does not support it. Remove the key.")
    if config.gradient_checkpointing is not None:
        return config.gradient_checkpointing
    return offered and "Transformer" in type(net).__name__ and device_of(config.device).startswith("cuda")


def _adapter(net: Any, config: Train) -> Policy:
    lora = config.lora
    assert lora is not None
    start = adapters.active_adapters(net)
    dora = [name for name in start if net.peft_config[name].use_dora]
    if dora:
        raise UsageError(
            f"model.adapters: {dora[0]} is a DoRA adapter, whose magnitudes can neither be continued nor be exported beside "
            "a new adapter. Fuse it into the pipeline (fuse_lora, save_pretrained) and start from that."
        )
    if lora.resume:
        if len(start) != 1:
            raise UsageError(
                f"train.lora.resume continues the model's only adapter, but it has {len(start)}. Give the model exactly "
                "one adapter, or set resume: false to stack a new one on all of them."
            )
        _check_continued(net, start[0], lora)
        adapters.continue_lora(net, start[0], dropout=lora.dropout)
    else:
        alpha = lora.rank if lora.alpha is None else lora.alpha
        adapters.add_lora(net, lora.rank, alpha, lora.targets or None, lora.dropout, seed=config.seed)
    if lora.dropout:
        for _, layer in adapters.lora_layers(net):
            if adapters.POLICY in layer.lora_dropout:  # the reference's own adapters stay as they are
                layer.lora_dropout[adapters.POLICY].train()
    return Policy(net, lora, start)


def _check_continued(net: Any, start: str, lora: Lora) -> None:
    """A continued adapter keeps its shape. Raises UsageError where the configuration asks for another."""
    own = net.peft_config[start]
    ends = tuple(lora.targets)
    paths = [f".{path}" for path, layer in adapters.lora_layers(net) if start in layer.lora_A]
    differing = []
    if lora.rank != own.r:
        differing.append(f"rank is {own.r}, not {lora.rank}")
    if lora.alpha is not None and lora.alpha != own.lora_alpha:
        differing.append(f"alpha is {own.lora_alpha:g}, not {lora.alpha:g}")
    missed = [path for path in paths if not path.endswith(tuple(f".{end}" for end in ends))]
    idle = [end for end in ends if not any(path.endswith(f".{end}") for path in paths)]
    if ends and (missed or idle):
        differing.append(f"targets are not {', '.join(ends)} (first to differ: {[*idle, *missed][0].lstrip('.')})")
    if differing:
        raise UsageError(
            f"train.lora.resume continues the adapter as it is, and its {'; its '.join(differing)}. Give lora.rank "
            f"{own.r} and leave alpha and targets out, or set resume: false to stack a new adapter."
        )


def _full(net: Any, frozen: bool) -> Policy:
    if adapters.active_adapters(net):
        net.fuse_lora()
        net.unload_lora()
    reference = copy.deepcopy(net).requires_grad_(False) if frozen else None
    net.requires_grad_(True)
    return Policy(net, None, frozen=reference)


def errors_of(residual: Tensor, keep: bool, weight: Tensor | None = None) -> Errors:
    """[B, ...] float32 -> Errors; keep: with the residual. weight: broadcasts to the residual; the mean is over ALL elements."""
    weighted = residual if weight is None else weight * residual
    return Errors((weighted * residual).flatten(1).mean(1), weighted if keep else None)
