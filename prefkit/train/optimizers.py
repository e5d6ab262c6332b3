"""Optimizers by name: AdamW, in one kernel or with states of 8 bits, Adafactor, or any class by its path.

`learning_rate` and `schedule` set its `lr` at every step, `weight_decay` is handed over, and so are `optimizer_options`.
Its state is part of a checkpoint, so a resumed training goes on exactly.

adamw      torch.optim.AdamW: 8 bytes of state a trained parameter
adamw8bit  bitsandbytes' AdamW: 2 bytes of state a parameter (Dettmers et al. 2022, arXiv:2110.02861; blocks of 256 share a
           scale, tensors below `min_8bit_size` = 4096 elements, such as small adapters, keep float32 states)
adafactor  torch.optim.Adafactor: a row and a column of state for each matrix (Shazeer and Stern 2018, arXiv:1804.04235); its
           steps are relative to the size of the weights, so learning_rate means something else
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib import util
from typing import Any

import torch

from prefkit import registry
from prefkit.config import Train
from prefkit.errors import UsageError

NAMED = {
    "adamw": "torch.optim:AdamW",
    "adamw8bit": "bitsandbytes.optim:AdamW8bit",
    "adafactor": "torch.optim:Adafactor",
}
EXTRAS = {"bitsandbytes": "8bit"}  # package -> the extra of prefkit that brings it
FUSED_ON = ("cpu", "cuda")


def check(name: str, config: Train) -> None:
    """Raises UsageError, before anything is loaded, for an optimizer that cannot be made or not be used."""
    if ":" not in config.optimizer and config.optimizer not in NAMED:
        raise UsageError(f"train.{name}.optimizer: {config.optimizer!r} is not known; choose {', '.join(NAMED)}, or a class as "
                         "package.module:Class or file.py:Class.")  # fmt: skip
    made = make(config, [torch.nn.Parameter(torch.zeros(1))], "cpu")
    closure = inspect.signature(made.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise UsageError(f"train.{name}.optimizer: {config.optimizer} wants to evaluate the loss several times a step (a "
                         "closure), and a step here has one gradient. Choose another.")  # fmt: skip
    if hasattr(made, "eval"):
        raise UsageError(f"train.{name}.optimizer: {config.optimizer} keeps the weights to look at apart from those in training "
                         "(schedule-free), so what is measured, saved and exported here would be the wrong ones. Choose "
                         "another.")  # fmt: skip


def make(config: Train, parameters: Sequence[torch.nn.Parameter], device: str) -> torch.optim.Optimizer:
    """The optimizer of a training. device: cpu | cuda | mps. Raises UsageError, PluginError."""
    kind = _class(config.optimizer)
    given: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer == "adamw":
        given["fused"] = device in FUSED_ON  # one kernel for all parameters
    try:
        return kind(parameters, **given | config.optimizer_options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"optimizer {config.optimizer}: it was given {', '.join([*given, *config.optimizer_options])}, and "
                         f"says: {error}. Mend train.*.optimizer_options.") from error  # fmt: skip


def _class(name: str) -> Any:
    path = NAMED.get(name, name)
    package = path.split(".")[0]
    if package in EXTRAS and util.find_spec(package) is None:
        raise UsageError(
            f"optimizer {name} needs {package}: pip install 'prefkit[{EXTRAS[package]}]' (or: pip install {package})."
        )
    found = registry.load_class("optimizer", path)
    if not issubclass(found, torch.optim.Optimizer):
        raise UsageError(f"optimizer {name} is no torch.optim.Optimizer.")
    return found
