"""What an objective has to give back, checked at every step: one loss a group, and metrics of the same shape."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from prefkit.errors import PluginError
from prefkit.plugin_guard import described, guarded, is_own
from prefkit.types import Groups


def loss_of(objective: Any, count: int, *given: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """`objective.loss(*given)` -> loss [count], metrics [count] each. Raises PluginError for anything else.

    A guest gets its own copy of Groups, which the other heads of the network see too.
    """
    name = type(objective).__name__
    if not is_own(objective):
        given = tuple(_copied(item) if isinstance(item, Groups) else item for item in given)
    with guarded(f"objective {name}", "failed"):
        found = objective.loss(*given)
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], dict):
        raise PluginError(f"objective {name} returned {described(found)}; (loss [G], metrics by name) is needed.")
    for what, value in {"loss": found[0], **found[1]}.items():
        if not isinstance(value, Tensor) or value.shape != (count,) or value.is_complex():
            had = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else described(value)
            raise PluginError(
                f"objective {name}: its {what} is {had}; one number a group is needed, a tensor of shape ({count},)."
            )
    if not found[0].is_floating_point():
        raise PluginError(f"objective {name}: its loss is {found[0].dtype}; a floating-point tensor is needed.")
    if torch.is_grad_enabled() and _learns(given) and not found[0].requires_grad:
        raise PluginError(f"objective {name}: its loss has no gradient, so nothing would be learned. Do not detach it.")
    return found


def _learns(given: tuple[Any, ...]) -> bool:
    """Whether the network's outputs, among what the objective was given, carry a gradient."""
    rows = [item for item in given if is_dataclass(item)]
    values = [getattr(row, field.name) for row in rows for field in fields(row)]
    return any(isinstance(value, Tensor) and value.requires_grad for value in values)


def _copied(groups: Groups) -> Groups:
    values = {field.name: getattr(groups, field.name) for field in fields(groups)}
    return replace(groups, **{name: v.clone() for name, v in values.items() if isinstance(v, torch.Tensor)})
