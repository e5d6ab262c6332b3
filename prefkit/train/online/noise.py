"""One denoising step as a Gaussian: its mean, its standard deviation, and the log-probability of the sampled step.

ddim   for epsilon and v. With alpha-bar a at this time and a' at the next: sigma^2 = (1 - a') / (1 - a) (1 - a / a'),
       std = eta sigma, mean = sqrt(a') x0 + sqrt(1 - a' - std^2) eps. eta = 1 is DDPM's ancestral noise, 0 is DDIM
       (arXiv 2010.02502, eq. 12 and 16). At the last step, a' is the scheduler's final alpha-bar, as in diffusers.
sde    for flow. The SDE with the marginals of the ODE dx = v dt: dx = [v + s^2 / (2 t) (x + (1 - t) v)] dt + s dw with
       s = level sqrt(t / (1 - t)) (Flow-GRPO, arXiv 2505.05470); at t = 1 the next sigma replaces t in 1 - t.
dance  for flow. std = level sqrt(dt), mean = x + v dt - level^2 / 2 score dt (DanceGRPO, arXiv 2505.07818).
cps    for flow. std = t' sin(level pi / 2), mean = (1 - t') x0 + sqrt(t'^2 - std^2) eps, which adds no excess noise
       (as in Flow-GRPO's later code); the log-probability is -|x' - mean|^2, without a normaliser.

All computations are float32 on [B, ...]. Log-probabilities are means over the elements of a sample, as in DDPO's
released code, so a clip of 1e-4 has the same effect.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prefkit.errors import UsageError

LEVELS = {"ddim": 1.0, "sde": 0.7, "dance": 0.3, "cps": 0.8}
SMALLEST_STD = 1e-6  # a step with a smaller std counts as deterministic, without a density to learn from


@dataclass
class Times:
    """Start (now) and end (then) of a batch of steps, each [B] float32: alpha-bar for ddim, sigma for flow models.

    before_one: the sigma that replaces t in 1 - t where t = 1, because 1 - t would be 0.
    """

    now: Tensor
    then: Tensor
    before_one: float = 1.0


@dataclass
class Step:
    """One step of B samples under one network.

    sample:   [B, ...] float32, the state after the step
    mean:     [B, ...] float32;  std, dt: [B] (dt: size of the step in sigma; 1 for ddim)
    log_prob: [B], the mean log-density over a sample's elements
    mask:     [B, ...] in 0..1, for objectives that use only a part of the image, else None
    """

    sample: Tensor
    mean: Tensor
    std: Tensor
    dt: Tensor
    log_prob: Tensor
    mask: Tensor | None = None

    def density(self) -> Tensor:
        """Return the log-density of each element under the Gaussian, [B, ...], with the normaliser even for cps."""
        return gaussian(self.sample, self.mean, broadcast(self.std, self.mean))


def broadcast(values: Tensor, like: Tensor) -> Tensor:
    """Reshape [B] to [B, 1, ...], so that it broadcasts to `like`."""
    return values.view(-1, *[1] * (like.ndim - 1))


def gaussian(sample: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return the log-density log N(sample; mean, std) of each element."""
    return -((sample - mean) ** 2) / (2 * std**2) - std.log() - 0.5 * math.log(2 * math.pi)


def ddim(x: Tensor, prediction: Tensor, times: Times, level: Tensor, kind: str, clip: float | None) -> tuple[Any, ...]:
    """Return mean, std and dt of a DDIM step. kind: "epsilon" | "v_prediction"; clip: limit of |x0|, or None."""
    now, then = broadcast(times.now, x), broadcast(times.then, x)
    signal, amount = now.sqrt(), (1 - now).sqrt()
    if kind == "epsilon":
        x0, eps = (x - amount * prediction) / signal, prediction
    else:
        x0, eps = signal * x - amount * prediction, signal * prediction + amount * x
    if clip is not None:
        x0 = x0.clamp(-clip, clip)
    std = level * ((1 - times.then) / (1 - times.now) * (1 - times.now / times.then)).clamp(min=0).sqrt()
    direction = (1 - then - broadcast(std, x) ** 2).clamp(min=0).sqrt()
    return then.sqrt() * x0 + direction * eps, std, torch.ones_like(std)


def sde(x: Tensor, v: Tensor, times: Times, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    t, dt = times.now, times.now - times.then
    sigma = level * (t / (1 - torch.where(t >= 1, torch.full_like(t, times.before_one), t))).sqrt()
    drift = v + broadcast(sigma**2 / (2 * t), x) * (x + (1 - broadcast(t, x)) * v)
    return x - drift * broadcast(dt, x), sigma * dt.sqrt(), dt


def dance(x: Tensor, v: Tensor, times: Times, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    t, dt = broadcast(times.now, x), times.now - times.then
    x0 = x - t * v
    score = -(x - (1 - t) * x0) / t**2
    mean = x - broadcast(dt, x) * v + broadcast(0.5 * level**2 * dt, x) * score
    return mean, level * dt.sqrt(), dt


def cps(x: Tensor, v: Tensor, times: Times, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    t, then = broadcast(times.now, x), broadcast(times.then, x)
    x0, eps = x - t * v, x + (1 - t) * v
    std = times.then * (level * math.pi / 2).sin()
    mean = (1 - then) * x0 + (then**2 - broadcast(std, x) ** 2).clamp(min=0).sqrt() * eps
    return mean, std, times.now - times.then


FLOW: dict[str, Callable[..., tuple[Tensor, Tensor, Tensor]]] = {"sde": sde, "dance": dance, "cps": cps}


@dataclass(frozen=True)
class Noise:
    """Noise model of denoising steps. kind: ddim | sde | dance | cps; level: noise level (eta for ddim)."""

    kind: str
    level: float
    prediction: str
    clip: float | None = None

    @classmethod
    def of(cls, kind: str | None, level: float | None, scheduler: Any, prediction: str) -> Noise:
        """Return the noise model for a scheduler. kind: None selects ddim or, for flow, sde. Raises UsageError."""
        kinds = list(FLOW) if prediction == "flow" else ["ddim"]
        kind = kind or kinds[0]
        if kind not in kinds:
            raise UsageError(
                f"online.noise: {kind!r} does not fit a model that predicts {prediction}; choose {', '.join(kinds)}, "
                "or remove the key."
            )
        if getattr(scheduler.config, "thresholding", False):
            raise UsageError(
                "the model's scheduler uses dynamic thresholding, so the density of its steps is unknown. Set "
                "thresholding to false in the model's scheduler_config.json."
            )
        clip = scheduler.config.clip_sample_range if getattr(scheduler.config, "clip_sample", False) else None
        return cls(kind, LEVELS[kind] if level is None else level, prediction, clip)

    def step(self, x: Tensor, prediction: Tensor, times: Times, active: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean [B, ...], std [B] and dt [B]. active: [B] bool; False gives a deterministic step (std 0).

        x, prediction: [B, ...] float32, in the scheduler's layout; the prediction is after guidance.
        """
        level = torch.where(active, self.level, 0.0).to(times.now)
        if self.kind == "ddim":
            return ddim(x, prediction, times, level, self.prediction, self.clip)
        return FLOW[self.kind](x, prediction, times, level)

    def log_prob(self, sample: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Return the mean log-probability over each sample's elements, [B]; 0 for a deterministic step."""
        if self.kind == "cps":
            return -((sample - mean) ** 2).flatten(1).mean(1)
        safe = torch.where(std > SMALLEST_STD, std, 1.0)
        density = gaussian(sample, mean, broadcast(safe, mean)).flatten(1).mean(1)
        return torch.where(std > SMALLEST_STD, density, 0.0)
