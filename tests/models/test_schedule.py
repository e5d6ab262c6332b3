"""Schedules against formulas written out in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from prefkit.errors import UsageError
from prefkit.models.schedule import Schedule

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def abar_reference():
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2
    return np.cumprod(1 - betas)


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x0, noise = (torch.randn(4, 3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    return x0, noise


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_vp_against_the_formulas(prediction):
    schedule = Schedule.of(DDIMScheduler(**BETAS), prediction)
    (x0, noise), time = batch(), torch.tensor([0, 10, 500, 999])
    a = np.sqrt(abar_reference()[time.numpy()])[:, None, None]
    s = np.sqrt(1 - abar_reference()[time.numpy()])[:, None, None]
    x_t = schedule.add_noise(x0, noise, time)
    np.testing.assert_allclose(x_t.numpy(), a * x0.numpy() + s * noise.numpy(), rtol=2e-5, atol=1e-6)
    expected = noise.numpy() if prediction == "epsilon" else a * noise.numpy() - s * x0.numpy()
    target = schedule.target(x0, noise, time)
    np.testing.assert_allclose(target.numpy(), expected, rtol=2e-5, atol=1e-5)
    torch.testing.assert_close(schedule.x0(x_t, target, time), x0)


def test_flow_against_the_formulas():
    schedule = Schedule.of(FlowMatchEulerDiscreteScheduler(shift=3.0), "flow")
    (x0, noise), time = batch(), torch.tensor([0.001, 0.3, 0.5, 0.999], dtype=torch.float64)
    s = time.numpy()[:, None, None]
    x_t = schedule.add_noise(x0, noise, time)
    np.testing.assert_allclose(x_t.numpy(), (1 - s) * x0.numpy() + s * noise.numpy(), rtol=1e-12)
    target = schedule.target(x0, noise, time)
    np.testing.assert_array_equal(target.numpy(), noise.numpy() - x0.numpy())
    torch.testing.assert_close(schedule.x0(x_t, target, time), x0)


def test_same_x_t_as_diffusers_add_noise():
    scheduler = DDIMScheduler(**BETAS)
    (x0, noise), time = batch(), torch.tensor([0, 10, 500, 999])
    ours = Schedule.of(scheduler, "epsilon").add_noise(x0.float(), noise.float(), time)
    torch.testing.assert_close(ours, scheduler.add_noise(x0.float(), noise.float(), time))
    velocity = Schedule.of(scheduler, "v_prediction").target(x0.float(), noise.float(), time)
    torch.testing.assert_close(velocity, scheduler.get_velocity(x0.float(), noise.float(), time))


def test_the_inference_schedule_plays_no_part():
    scheduler = EulerDiscreteScheduler(**BETAS)
    before = Schedule.of(scheduler, "epsilon").alphas_cumprod
    scheduler.set_timesteps(7)
    assert torch.equal(before, Schedule.of(scheduler, "epsilon").alphas_cumprod)


def draws(schedule, sampling=None, n=20000):
    generator = torch.Generator().manual_seed(0)
    return torch.stack([schedule.draw_time(generator, sampling) for _ in range(n)])


def test_times_drawn():
    index = draws(Schedule.of(DDIMScheduler(**BETAS), "epsilon"))
    assert index.dtype == torch.int64 and index.min() == 0 and index.max() == 999
    assert abs(index.double().mean() - 499.5) < 5 * 289 / 20000**0.5
    sigma = draws(Schedule("flow"))
    assert sigma.dtype == torch.float64 and sigma.min() > 0 and sigma.max() < 1
    logits = torch.logit(sigma)
    assert abs(logits.mean()) < 0.04 and abs(logits.std() - 1) < 0.03
    uniform = draws(Schedule("flow"), "uniform")
    assert abs(uniform.mean() - 0.5) < 0.011 and abs(uniform.std() - 0.28868) < 0.006


def test_unknown_sampling_is_refused():
    for schedule, name in (
        (Schedule("flow"), "cosine"),
        (Schedule.of(DDIMScheduler(**BETAS), "epsilon"), "logit_normal"),
    ):
        with pytest.raises(UsageError, match=name):
            schedule.draw_time(torch.Generator(), name)
