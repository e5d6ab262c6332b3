"""Recorded sampling on real pipelines: guided and not, epsilon, v and flow, packed and plain."""

from __future__ import annotations

import pytest
import torch

from prefkit.errors import CaptureError
from prefkit.models.capture.call import capture
from prefkit.models.load.pipeline import load_pipeline
from prefkit.models.sample import Sampler
from prefkit.train.online.noise import Noise
from prefkit.train.online.rollout import Rollout, set_recordable_scheduler

PROMPTS, SEEDS = ["a red cat", "two boats"], [3, 4]


def rollout_of(folder, level=None, guidance=3.0, **extra):
    pipe = load_pipeline(folder)
    wiring = capture(pipe)
    set_recordable_scheduler(pipe, wiring.prediction)
    noise = Noise.of(None, level, pipe.scheduler, wiring.prediction)
    return Rollout(pipe, wiring, noise, {"steps": 4, "guidance": guidance, "extra_call": extra})


@pytest.mark.parametrize("kind", ["sd", "sd-v", "sd3", "flux"])
def test_training_sees_what_sampling_saw(folders, kind):
    """Zero update: every step's log-probability is the same again, alone and in another order and batch."""
    rollout = rollout_of(folders[kind])
    active = torch.ones(2, 4, dtype=torch.bool)
    samples, chains = rollout.sample(PROMPTS, SEEDS, active)
    assert len(samples) == 2 and chains.states.shape[:2] == (2, 5)
    assert torch.equal(samples[1].latents.float(), chains.states[1, -1])
    steps = chains.learnable(0)
    assert len(steps) >= 3
    with torch.no_grad():
        for step in steps.tolist():
            new, old = rollout.transition(rollout.net, chains, [0, 1], torch.tensor([step, step]), True)
            assert (new.log_prob - old.log_prob).abs().max() < 1e-6
            torch.testing.assert_close(new.mean, old.mean, rtol=1e-4, atol=1e-4)
        mixed = torch.tensor([int(steps[-1]), int(steps[0]), int(steps[1])])
        new, old = rollout.transition(rollout.net, chains, [1, 0, 1], mixed, False)
        assert (new.log_prob - old.log_prob).abs().max() < 1e-5
    assert chains.guidance == 3.0 and (chains.conditions[0][0] is None) == (kind == "flux")


@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_without_noise_the_pipeline_makes_what_it_always_makes(folders, kind):
    rollout = rollout_of(folders[kind], level=0.0)
    sampler = Sampler(rollout.pipe, steps=4, guidance=3.0)
    plain = sampler.sample(PROMPTS, SEEDS)
    recorded, chains = rollout.sample(PROMPTS, SEEDS, torch.ones(2, 4, dtype=torch.bool))
    for a, b in zip(plain, recorded, strict=True):
        torch.testing.assert_close(a.latents, b.latents, rtol=1e-4, atol=1e-4)
    assert not chains.std.any() and len(chains.learnable(0)) == 0


def test_noise_belongs_to_the_sample_whatever_the_batch(folders):
    rollout = rollout_of(folders["sd"])
    _, both = rollout.sample(PROMPTS, SEEDS, torch.ones(2, 4, dtype=torch.bool))
    _, one = rollout.sample(PROMPTS[1:], SEEDS[1:], torch.ones(1, 4, dtype=torch.bool))
    torch.testing.assert_close(one.states[0], both.states[1], rtol=1e-4, atol=1e-4)
    assert torch.equal(one.states[0, 0], both.states[1, 0])


def test_guidance_that_cannot_be_repeated_is_refused(folders):
    rollout = rollout_of(folders["sd"], guidance_rescale=0.7)
    with pytest.raises(CaptureError, match="guidance_rescale"):
        rollout.sample(PROMPTS, SEEDS, torch.ones(2, 4, dtype=torch.bool))
