"""Checks at every step that an objective returns one loss per group, and metrics of the same shape."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from prefkit.errors import PluginError
from prefkit.plugin_guard import described, guarded, is_own
from prefkit.types import Groups


def loss_of(objective: Any, count: int, *arguments: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Return `objective.loss(*arguments)`: the loss [count] and metrics, each [count].

    Raises PluginError for any other result. All heads share one Groups object, so an objective from outside prefkit,
    which might change it, gets a copy.
    """
    name = type(objective).__name__
    if not is_own(objective):
        arguments = tuple(_copied(item) if isinstance(item, Groups) else item for item in arguments)
    with guarded(f"objective {name}", "failed"):
        result = objective.loss(*arguments)
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
        raise PluginError(f"objective {name} returned {described(result)}; it must return (loss [G], dict of metrics).")
    loss, metrics = result
    for key, value in {"loss": loss, **metrics}.items():
        if not isinstance(value, Tensor) or value.shape != (count,) or value.is_complex():
            actual = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else described(value)
            raise PluginError(
                f"objective {name}: its {key} is {actual}; it must be a tensor of shape ({count},), one number per "
                "group."
            )
    if not loss.is_floating_point():
        raise PluginError(f"objective {name}: its loss is {loss.dtype}; it must be a floating-point tensor.")
    if torch.is_grad_enabled() and _has_gradient(arguments) and not loss.requires_grad:
        raise PluginError(f"objective {name}: its loss has no gradient, so nothing would be learned. Do not detach it.")
    return loss, metrics


def _has_gradient(arguments: tuple[Any, ...]) -> bool:
    """True if any tensor in the dataclasses among the arguments requires a gradient."""
    rows = [item for item in arguments if is_dataclass(item)]
    values = [getattr(row, field.name) for row in rows for field in fields(row)]
    return any(isinstance(value, Tensor) and value.requires_grad for value in values)


def _copied(groups: Groups) -> Groups:
    values = {field.name: getattr(groups, field.name) for field in fields(groups)}
    return replace(groups, **{name: v.clone() for name, v in values.items() if isinstance(v, torch.Tensor)})
