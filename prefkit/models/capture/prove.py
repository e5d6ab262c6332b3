"""Prove the network's prediction type (epsilon, v or flow): the recorded scheduler steps must follow from it.

x_t is a0 x0 + b0 noise (VP: a0 = sqrt(abar), b0 = sqrt(1 - abar); flow: a0 = 1 - sigma, b0 = sigma). From x_t and a
prediction, a deterministic first-order step computes a x0 + b noise with a^2 + b^2 = 1 (VP; DDIM, eq. 12 of
arXiv 2010.02502) or a = 1 - sigma', b = sigma' (flow). Only the right prediction type gives such a and b. A scheduler
with other kinds of steps must expose its x0.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from prefkit.errors import CaptureError
from prefkit.models.capture.maps import same
from prefkit.models.capture.record import Record, Step

PREDICTIONS = ("epsilon", "v_prediction", "flow")


def declared(pipe: Any) -> str:
    """Return the prediction type that the pipeline's scheduler declares. Raises CaptureError for unsupported types."""
    scheduler, config = pipe.scheduler, pipe.scheduler.config
    name = type(scheduler).__name__
    if "sigma_data" in config:
        raise CaptureError(
            f"{type(pipe).__name__} uses {name}: networks with EDM preconditioning (sigma_data) are not supported. "
            "Choose a model with a DDPM or flow-matching scheduler."
        )
    flow = name.startswith("FlowMatch") or config.get("use_flow_sigmas") or "flow" in config.get("prediction_type", "")
    kind = "flow" if flow else config.get("prediction_type")
    if kind not in PREDICTIONS or (kind != "flow" and not hasattr(scheduler, "alphas_cumprod")):
        raise CaptureError(
            f"{type(pipe).__name__} uses {name} with prediction_type {kind!r}; only {', '.join(PREDICTIONS)} are "
            "supported, the first two with alphas_cumprod. Choose another scheduler (model.scheduler)."
        )
    return kind


def log_sigma_at(scheduler: Any, time: float) -> float:
    """Return log sqrt((1 - abar) / abar) at an index, interpolated linearly as in diffusers' sigma_to_t."""
    abar = scheduler.alphas_cumprod.cpu().double()
    low = min(int(time), len(abar) - 1)
    high = min(low + 1, len(abar) - 1)
    ends = [0.5 * math.log(max(1 - abar[i].item(), 1e-12) / max(abar[i].item(), 1e-12)) for i in (low, high)]
    return ends[0] + (time - int(time)) * (ends[1] - ends[0])


def noise_level(pipe: Any, prediction: str, step: Step) -> float:
    """Return the sigma of x_t: 0..1 for flow, the ratio of noise to signal for VP.

    VP schedulers with fractional steps (Karras spacing) round the time, so their own sigma is used, unless it is more
    than one step away from the sigma that follows from alphas_cumprod (interpolated half steps).
    """
    if prediction == "flow":
        return step.time / pipe.scheduler.config.num_train_timesteps
    low, here, high = (log_sigma_at(pipe.scheduler, max(step.time + shift, 0)) for shift in (-1, 0, 1))
    if step.sigma is not None and step.sigma > 0 and low - 1e-3 <= math.log(step.sigma) <= high + 1e-3:
        return step.sigma
    return math.exp(here)


def mixture(prediction: str, sigma: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the coefficients (of x0, of noise) in x_t, and those in the prediction."""
    if prediction == "flow":
        return (1 - sigma, sigma), (-1.0, 1.0)
    root = math.sqrt(1 + sigma**2)
    signal, noise = 1 / root, sigma / root
    return (signal, noise), ((0.0, 1.0) if prediction == "epsilon" else (-noise, signal))


def prove_prediction(pipe: Any, prediction: str, record: Record, states: list[Tensor], exploding: bool) -> None:
    """Raise CaptureError unless the recorded scheduler steps follow from the prediction type `prediction`.

    states: x_t of each step. exploding: True if the scheduler's sample is x_t * sqrt(1 + sigma^2).
    """
    following: list[Step | None] = [*record.steps[1:], None]
    for step, after, x_t in zip(record.steps, following, states, strict=True):
        sigma = noise_level(pipe, prediction, step)
        if _exposes_x0(prediction, sigma, x_t, step) or _first_order(
            pipe, prediction, sigma, x_t, step, after, exploding
        ):
            return
    raise CaptureError(
        f"{type(pipe).__name__} with {type(pipe.scheduler).__name__}: the scheduler's steps do not follow from the "
        f"prediction type {prediction!r}. Either the type is wrong, or the scheduler's steps cannot be checked; set "
        "model.scheduler to DDIMScheduler (for flow models, FlowMatchEulerDiscreteScheduler)."
    )


def prove_chain(pipe: Any, record: Record) -> None:
    """Raise CaptureError if a step does not begin with the sample that the previous step returned."""
    for step, following in itertools.pairwise(record.steps):
        if not same(following.before, step.after, _limit(step.after)):
            raise CaptureError(
                f"{type(pipe).__name__} changes the sample between two scheduler steps (as inpainting by blending "
                "does), so its images do not come from its network alone. Use the model's text-to-image pipeline, or a "
                "network that takes the image as an input (extra channels or tokens)."
            )


def _limit(x: Tensor) -> float:
    return 1e-3 if x.dtype in (torch.float32, torch.float64) else 3e-2


def _exposes_x0(prediction: str, sigma: float, x_t: Tensor, step: Step) -> bool:
    """True if the scheduler exposes a clean sample or noise, and it equals what `prediction` implies."""
    derived = [tensor for tensor in (step.original, step.converted) if tensor is not None and tensor.shape == x_t.shape]
    (sx, nx), (sp, np_) = mixture(prediction, sigma)
    determinant = sx * np_ - nx * sp
    if not derived or abs(determinant) < 1e-2:
        return False
    x, p = x_t.cpu().double(), step.model_output.cpu().double()
    x0, noise = (np_ * x - nx * p) / determinant, (sx * p - sp * x) / determinant
    limit = _limit(x_t)
    return any(
        (tensor.cpu().double() - ours).abs().max() <= limit * ours.abs().max()
        for tensor in derived
        for ours in (x0, noise)
    )


def _first_order(
    pipe: Any, prediction: str, sigma: float, x_t: Tensor, step: Step, following: Step | None, exploding: bool
) -> bool:
    """True if the step returned a * x0 + b * noise, with a and b as in the module docstring."""
    limit = _limit(x_t)
    basis = torch.stack([tensor.cpu().double().flatten() for tensor in (x_t, step.model_output)], dim=1)
    after = step.after.cpu().double().flatten()
    p, q = torch.linalg.lstsq(basis, after).solution.tolist()
    if (basis @ torch.tensor([p, q], dtype=torch.float64) - after).abs().max() > limit * after.abs().max():
        return False
    (sx, nx), (sp, np_) = mixture(prediction, sigma)
    a, b = p * sx + q * sp, p * nx + q * np_
    if prediction == "flow":
        target = 0.0 if following is None else noise_level(pipe, prediction, following)
        return abs(a - (1 - target)) < limit and abs(b - target) < limit
    return abs(a - 1) < limit if exploding else abs(a**2 + b**2 - 1) < limit and a > 0
