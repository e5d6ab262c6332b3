"""Call a denoiser as its pipeline does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from prefkit.models.capture.maps import CLOCK, EXTRA_INPUT_KEY, OUTPUT, denoiser_input, stacked
from prefkit.models.capture.record import replaced
from prefkit.models.capture.wiring import Wiring
from prefkit.models.trees import Tree


def compute_dtype(net: Any) -> torch.dtype:
    """Return the dtype of the network's first floating-point weight; the network's inputs are cast to this dtype."""
    return next(p.dtype for p in net.parameters() if p.is_floating_point())


def predict(net: Any, wiring: Wiring, x_t: Tensor, time: Tensor, condition: Tree) -> Tensor:
    """Run the denoiser and return model_output for scheduler.step: [B, ...] float32, in the scheduler's layout.

    x_t:       [B, ...] noisy latents in the scheduler's layout; VP models: sqrt(abar) x0 + sqrt(1 - abar) noise
    time:      [B] step index (epsilon, v) or sigma in 0..1 (flow)
    condition: a Tree for B samples (`collate`)
    """
    rest = {name: value for name, value in condition.items() if name != EXTRA_INPUT_KEY}
    x = denoiser_input(wiring.input, x_t.to(compute_dtype(net)), condition.get(EXTRA_INPUT_KEY))
    arguments = {wiring.sample: x, wiring.time: CLOCK[wiring.clock](time, wiring.train_steps)}
    out = stacked(net(**arguments, **rest, return_dict=False))
    return OUTPUT[wiring.output](out, x_t).float()


@contextmanager
def forward_as(net: Any, precise: Any) -> Iterator[None]:
    """Inside the block, the denoiser's forward runs in the context `precise()`, such as autocast."""
    inner = net.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with precise():
            return inner(*args, **kwargs)

    if compute_dtype(net) == torch.float32 and isinstance(precise(), nullcontext):
        yield
        return
    with replaced(net, "forward", forward):
        yield
