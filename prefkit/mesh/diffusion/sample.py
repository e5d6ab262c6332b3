"""Sampling of mesh hypotheses: DDIM (arXiv 2010.02502, eta 0) from seeded noise; hypothesis 0 starts from zeros, as in ADHMR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prefkit.mesh.diffusion.network import STATE


def noise_of(seeds: Sequence[int | None]) -> Tensor:
    """Return the initial states [B, 130]: standard normal noise from each seed, zeros for None."""
    rows = [torch.zeros(STATE) if seed is None else _normal(seed) for seed in seeds]
    return torch.stack(rows)


def _normal(seed: int) -> Tensor:
    return torch.randn(STATE, generator=torch.Generator("cpu").manual_seed(seed))


@torch.no_grad()
def sample(net: Any, scheduler: Any, noise: Tensor, condition: Tensor, steps: int) -> Tensor:
    """Sample states [B, 130] with the denoiser. Returns them unstandardised, in float32, on the CPU.

    noise: [B, 130]; condition: [B, C]; steps: number of network calls. The scheduler chooses the timesteps.
    """
    parameter = next(net.parameters())
    scheduler.set_timesteps(steps)
    x, condition = (each.to(parameter.device, parameter.dtype) for each in (noise, condition))
    for t in scheduler.timesteps:
        predicted = net(x, t.to(parameter.device).expand(len(x)), condition)
        x = scheduler.step(predicted, t, x).prev_sample
    return (x * net.std + net.mean).float().cpu()
