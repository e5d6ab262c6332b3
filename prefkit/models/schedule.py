"""Training schedules: noisy latents and the network's target.

epsilon, v   x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise     DDPM, arXiv 2006.11239, eq. 4
             v = sqrt(abar_t) noise - sqrt(1 - abar_t) x0        arXiv 2202.00512, section 4
sample       the same x_t; the network predicts x0
flow         x_s = (1 - s) x0 + s noise, velocity noise - x0     rectified flow, arXiv 2209.03003
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prefkit.errors import UsageError
from prefkit.models.precision import exact_dtype

TIME_SAMPLING = ("uniform", "logit_normal")


@dataclass(frozen=True)
class Schedule:
    """A noise schedule. alphas_cumprod: [T] float64, None for flow models.

    prediction: what the network predicts, "epsilon" | "v_prediction" | "sample" | "flow".
    """

    prediction: str
    alphas_cumprod: Tensor | None = None

    @classmethod
    def of(cls, scheduler: Any, prediction: str) -> Schedule:
        """Return the training schedule of a diffusers scheduler, ignoring its inference timesteps."""
        if prediction == "flow":
            return cls("flow")
        return cls(prediction, scheduler.alphas_cumprod.detach().cpu().double())

    def draw_time(self, generator: torch.Generator, sampling: str | None = None) -> Tensor:
        """Draw one timestep: int64, uniform on 0..T-1; for flow models float64 in (0, 1), by default logit-normal."""
        if sampling not in (None, *TIME_SAMPLING) or (self.alphas_cumprod is not None and sampling == "logit_normal"):
            raise UsageError(
                f"time sampling {sampling!r} is not known for {self.prediction}; "
                "choose uniform, or for flow models logit_normal or uniform."
            )
        if self.alphas_cumprod is not None:
            return torch.randint(len(self.alphas_cumprod), (), generator=generator)
        if sampling == "uniform":
            return torch.rand((), generator=generator, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
        return torch.randn((), generator=generator, dtype=torch.float64).sigmoid()

    def coefficients(self, time: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the coefficients of x0 and of the noise in x_t, each [B, 1, ...] with the dtype of `like`."""
        exact = exact_dtype(time.device)
        if self.alphas_cumprod is None:
            signal, noise = 1 - time.to(exact), time.to(exact)
        else:
            abar = self.alphas_cumprod.to(exact).to(time.device)[time.long()]
            signal, noise = abar.sqrt(), (1 - abar).sqrt()
        shape = (-1, *[1] * (like.ndim - 1))
        return signal.to(like).view(shape), noise.to(like).view(shape)

    def add_noise(self, x0: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return x_t [B, ...]. x0, noise: [B, ...]; time: [B]."""
        signal, amount = self.coefficients(time, x0)
        return signal * x0 + amount * noise

    def target(self, x0: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return the network's training target for x_t, [B, ...]."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "sample":
            return x0
        if self.prediction == "flow":
            return noise - x0
        signal, amount = self.coefficients(time, x0)
        return signal * noise - amount * x0

    def clean_factor(self, time: Tensor) -> Tensor:
        """Return the factor [B] float32 from an error of the prediction to the error of the x0 that it implies."""
        signal, amount = (c.flatten() for c in self.coefficients(time, torch.empty(0, device=time.device)))
        if self.prediction == "epsilon":
            return amount / signal
        return torch.ones_like(amount) if self.prediction == "sample" else amount

    def x0(self, x_t: Tensor, prediction: Tensor, time: Tensor) -> Tensor:
        """Return the clean sample x0 [B, ...] that a prediction implies; for epsilon, infinite if x_t is pure noise."""
        signal, amount = self.coefficients(time, x_t)
        if self.prediction == "epsilon":
            return (x_t - amount * prediction) / signal
        if self.prediction == "flow":
            return x_t - amount * prediction
        if self.prediction == "sample":
            return prediction
        return signal * x_t - amount * prediction
