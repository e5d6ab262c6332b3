"""Gradient checkpointing only when needed: `gradient_checkpointing: null` looks before the first step whether it is.

Checkpointed, a network keeps the activations of one block at a time and computes them again in the backward pass: a
forward more per step, and the same gradients. On CUDA the largest micro-batch goes forward and backward once without
it; it stays off if the peak, with the optimizer's states that are not there yet, leaves a margin of the card's memory.
Gradients and random state are afterwards as before. On other devices, whose memory cannot be asked, it is off.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from prefkit.errors import UsageError
from prefkit.train.data.batches import Batch
from prefkit.train.data.prompt_cache import PromptEmbeddingCache

MARGIN = 0.1  # of the memory: fragmentation, kernels' workspaces, other shapes of conditions
GB = 1e9


class Card:
    """The memory of a CUDA device, in bytes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def forget_peak(self) -> None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> int:
        """Most that tensors of this process have taken since."""
        return torch.cuda.max_memory_allocated(self.device)

    def available(self) -> int:
        """What this process could take: what is free and what it holds already."""
        free, _ = torch.cuda.mem_get_info(self.device)
        return free + torch.cuda.memory_reserved(self.device)


def turn_on(net: Any) -> None:
    """Raises UsageError where the network has no checkpointing."""
    if not _offered(net):
        raise UsageError(f"train.*.gradient_checkpointing: {type(net).__name__} has none. Leave it out.")
    net.enable_gradient_checkpointing()


def decide(loop: Any, card: Card | None = None) -> str:
    """Where the configuration leaves it open, turn checkpointing on or leave it off; returns which, and why."""
    asked, net, device = loop.config.gradient_checkpointing, loop.policy.net, loop.processes.device
    if asked is not None:
        return "on, as configured" if asked else "off, as configured"
    if not _offered(net):
        return f"off: {type(net).__name__} has none"
    if loop.policy.sharded:
        return "off: with shards it has to be asked for"
    if card is None and device.type != "cuda":
        return f"off: on {device.type} it has to be asked for"
    needed, why = _needed(loop, card or Card(device))
    if loop.processes.sum(torch.tensor(float(needed))) > 0:
        turn_on(net)
        return f"on: {why if needed else 'another process needs it'}"
    return f"off: {why}"


def _offered(net: Any) -> bool:
    return bool(getattr(net, "_supports_gradient_checkpointing", False))


def _needed(loop: Any, card: Card) -> tuple[bool, str]:
    card.forget_peak()
    ran_out = False
    try:
        _forward_and_backward(loop)
    except torch.OutOfMemoryError:
        ran_out = True  # what it holds is free once this block is left
    need, there = card.peak() + _states(loop), card.available()
    card.forget_peak()
    if ran_out:
        return True, f"without it a micro-batch runs out of the {card.available() / GB:.3g} GB that are there"
    needed = need > (1 - MARGIN) * there
    return needed, f"{'without it ' if needed else ''}a step takes {need / GB:.3g} of {there / GB:.3g} GB"


def _forward_and_backward(loop: Any) -> None:
    """As in a step. Without the objective, which would see errors that belong to no step."""
    batch = largest(loop).to(loop.processes.device)
    with torch.random.fork_rng(devices=[loop.processes.device] if loop.processes.device.type == "cuda" else []):
        try:
            found = loop.residuals(loop.policy.net, batch)
            sum(residual.square().mean() for residual in found.values()).backward()
        finally:
            for parameter in loop.policy.parameters():
                parameter.grad = None


def largest(loop: Any) -> Batch:
    """A micro-batch full of the first epoch's group whose images take most, at its first visit."""
    epoch = min(loop.config.steps, math.ceil(len(loop.data.pairs) / loop.global_batch))
    groups = [group for step in range(epoch) for own in loop.chosen(step) for group, _ in own]

    def elements(group: Any) -> int:
        height, width = loop.data.size(group)
        return height * width * len(group.sides)

    group = max(groups, key=elements)
    if isinstance(loop.data.conditions, PromptEmbeddingCache):
        loop.data.conditions.show(loop.data, [group])
    (batch,) = loop.data.batches(loop.family, [(group, 0)] * loop.config.batch_size)
    return batch


def _states(loop: Any) -> int:
    """Bytes that the optimizer will take at its first step: AdamW's two float32 numbers a parameter, or two of 8 bits."""
    each = 2 if loop.config.optimizer == "adamw8bit" else 8
    return sum(each * parameter.numel() for parameter in loop.policy.parameters())
