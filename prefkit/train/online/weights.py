"""Copies of the trained weights: the frozen reference, a moving average. A copy is put into the network for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from prefkit.train.policy import Policy


def snapshot(policy: Policy) -> dict[str, Tensor]:
    """The trained weights by name, copied."""
    return {name: p.detach().clone() for name, p in policy.net.named_parameters() if p.requires_grad}


@contextmanager
def inside(policy: Policy, weights: Mapping[str, Tensor]) -> Iterator[Any]:
    """with inside(policy, weights) as net: the network with these weights. No copy is made: tensors change places.

    Nothing that needs a gradient may be computed before and used after.
    """
    parameters = {name: p for name, p in policy.net.named_parameters() if p.requires_grad}
    own = {name: parameter.data for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        parameter.data = weights[name]
    try:
        yield policy.net
    finally:
        for name, parameter in parameters.items():
            parameter.data = own[name]


class Average:
    """Exponential moving average of the trained weights: decay of what is kept at an update."""

    def __init__(self, policy: Policy, decay: float) -> None:
        self.policy, self.decay, self.weights = policy, decay, snapshot(policy)

    @torch.no_grad()
    def update(self) -> None:
        for name, parameter in self.policy.net.named_parameters():
            if parameter.requires_grad:
                self.weights[name].lerp_(parameter.detach(), 1 - self.decay)


class Refreshed(Policy):
    """A policy whose reference is a copy that may be renewed, instead of the start for ever."""

    @classmethod
    def of(cls, policy: Policy) -> Refreshed:
        found = cls(policy.net, policy.lora, policy.start, policy.frozen)
        found.kept = snapshot(policy)
        return found

    kept: dict[str, Tensor]

    def reference(self) -> Any:
        return inside(self, self.kept)

    def refresh(self) -> None:
        self.kept = snapshot(self)


def packed(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Several sets of weights as one, for a checkpoint."""
    return {f"{part}:{name}": tensor for part, weights in parts.items() for name, tensor in weights.items()}


def unpacked(weights: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    start = f"{part}:"
    return {name.removeprefix(start): tensor for name, tensor in weights.items() if name.startswith(start)}
