"""Steps against diffusers, torch's normal distribution, the ODE, and the marginals that they must keep."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from prefkit.errors import UsageError
from prefkit.train.online.noise import LEVELS, Noise, Times
from prefkit.train.online.rollout import step_times, stochastic_steps

SHAPE = (3, 4, 8, 8)
ALL = torch.ones(3, dtype=torch.bool)


def times_of(scheduler, prediction, number, like=3):
    now, then, _, one = step_times(scheduler, prediction, scheduler.timesteps[number], number)
    return Times(torch.full((like,), now), torch.full((like,), then), one)


def randoms(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_steps_are_those_of_diffusers(prediction, eta, spacing):
    scheduler = DDIMScheduler(
        prediction_type=prediction,
        clip_sample=eta == 1.0,
        timestep_spacing=spacing,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    scheduler.set_timesteps(7)
    noise = Noise.of(None, eta, scheduler, prediction)
    x, output, z = randoms(3)
    for number in range(7):
        mean, std, _ = noise.step(x, output, times_of(scheduler, prediction, number), ALL)
        theirs = scheduler.step(output, scheduler.timesteps[number], x, eta=eta, variance_noise=z).prev_sample
        torch.testing.assert_close(mean + std.view(-1, 1, 1, 1) * z, theirs, rtol=2e-4, atol=2e-5)
        assert (std > 0).all() == (eta > 0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_with_eta_1_a_step_is_ancestral_sampling(prediction):
    """diffusers' DDPM, which is written in another form: the posterior's mean and variance."""
    settings = {"prediction_type": prediction, "clip_sample": False, "timestep_spacing": "leading"}
    scheduler, theirs = DDIMScheduler(**settings), DDPMScheduler(variance_type="fixed_small", **settings)
    for each in (scheduler, theirs):
        each.set_timesteps(7)
    assert torch.equal(scheduler.timesteps, theirs.timesteps)
    x, output = randoms(2)
    for number, timestep in enumerate(theirs.timesteps[:-1]):
        z = torch.randn(SHAPE, generator=torch.Generator().manual_seed(number))
        step = theirs.step(output, timestep, x, generator=torch.Generator().manual_seed(number)).prev_sample
        mean, std, _ = Noise.of(None, 1.0, scheduler, prediction).step(
            x, output, times_of(scheduler, prediction, number), ALL
        )
        torch.testing.assert_close(mean + std.view(-1, 1, 1, 1) * z, step, rtol=2e-4, atol=5e-5)


@pytest.mark.parametrize("kind", ["ddim", "sde", "dance"])
def test_log_probability_is_that_of_torch(kind):
    mean, sample = randoms(2)
    std = torch.tensor([0.02, 0.5, 3.0])
    noise = Noise(kind, 1.0, "epsilon" if kind == "ddim" else "flow")
    expected = torch.distributions.Normal(mean.double(), std.double().view(-1, 1, 1, 1)).log_prob(sample.double())
    torch.testing.assert_close(
        noise.log_prob(sample, mean, std), expected.mean((1, 2, 3)).float(), rtol=1e-5, atol=1e-5
    )


def test_cps_has_no_normaliser():
    mean, sample = randoms(2)
    found = Noise("cps", 0.8, "flow").log_prob(sample, mean, torch.tensor([0.1, 1.0, 2.0]))
    torch.testing.assert_close(found, -((sample - mean) ** 2).mean((1, 2, 3)))


@pytest.mark.parametrize("kind", ["sde", "dance", "cps"])
def test_without_noise_flow_steps_are_euler(kind):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(6)
    x, v = randoms(2)
    for number in range(6):
        mean, std, _ = Noise(kind, 0.0, "flow").step(x, v, times_of(scheduler, "flow", number), ALL)
        scheduler._step_index = number
        theirs = scheduler.step(v, scheduler.timesteps[number], x).prev_sample
        torch.testing.assert_close(mean, theirs, rtol=1e-5, atol=1e-5)
        assert not std.any()


def final_deviation(step, steps=400, count=20000):
    """Of x at t = 0 when data are N(0, 0.5^2): the exact velocity is used, in float64."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 1, generator=generator, dtype=torch.float64)
    sigmas = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    for now, then in itertools.pairwise(sigmas):
        variance = (1 - now) ** 2 * 0.25 + now**2
        v = (now - (1 - now) * 0.25) / variance * x  # E[noise - x0 | x]
        x = step(x, v, now, then, sigmas[1], torch.randn(count, 1, generator=generator, dtype=torch.float64))
    return x.std().item()


@pytest.mark.parametrize(("kind", "level"), [("sde", 0.7), ("sde", 1.0), ("dance", 0.3)])
def test_the_marginals_of_a_gaussian_are_kept(kind, level):
    noise = Noise(kind, level, "flow")
    everywhere = torch.ones(1, dtype=torch.bool)

    def step(x, v, now, then, one, z):
        times = Times(now.expand(1), then.expand(1), float(one))
        mean, std, _ = noise.step(x.T, v.T, times, everywhere)
        return mean.T + std * z

    assert final_deviation(step) == pytest.approx(0.5, abs=0.012)


def test_the_published_drift_of_science_t2i_does_not_keep_them():
    """arXiv 2504.13129: -x for +x, and a churn for the deviation (here 1, where the error shows)."""

    def step(x, v, now, then, one, z, gamma=1.0 / 30):
        std = now * math.sqrt((1 + gamma) ** 2 - 1)
        drift = v + std**2 / (2 * now) * (-x + (1 - now) * v)
        return x + (then - now) * drift + std * z

    assert final_deviation(step, steps=30) > 0.6


def test_inactive_samples_take_the_deterministic_step():
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(5)
    x, output = randoms(2)
    times = times_of(scheduler, "epsilon", 1)
    some = torch.tensor([True, False, True])
    mean, std, _ = Noise("ddim", 1.0, "epsilon").step(x, output, times, some)
    calm, none, _ = Noise("ddim", 0.0, "epsilon").step(x, output, times, ALL)
    assert torch.equal(mean[1], calm[1]) and std[1] == 0 == none[1] and (std[[0, 2]] > 0).all()


def test_a_noise_that_does_not_fit_the_model_is_refused():
    with pytest.raises(UsageError, match="sde"):
        Noise.of("ddim", None, FlowMatchEulerDiscreteScheduler(), "flow")
    with pytest.raises(UsageError, match="thresholding"):
        Noise.of(None, None, DDIMScheduler(thresholding=True), "epsilon")
    assert Noise.of(None, None, FlowMatchEulerDiscreteScheduler(), "flow").level == LEVELS["sde"]


def test_windows_are_shared_inside_a_group_and_move():
    drawn = [stochastic_steps(10, 3, 0, 7, number, request) for number in range(6) for request in "ab"]
    assert all(window.sum() == 3 and np.ptp(np.flatnonzero(window)) == 2 for window in drawn)
    assert len({tuple(window) for window in drawn}) > 2
    assert np.array_equal(stochastic_steps(10, 3, 0, 7, 4, "a"), stochastic_steps(10, 3, 0, 7, 4, "a"))
    starts = [int(stochastic_steps(10, 4, 25, 7, number, "a").argmax()) for number in (0, 24, 25, 50, 25 * 7)]
    assert starts == [0, 0, 1, 2, 0]
    assert stochastic_steps(10, 0, 0, 7, 0, "a").all() and stochastic_steps(4, 9, 0, 7, 0, "a").all()
