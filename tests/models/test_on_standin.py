"""Offloading to CPU memory, on the stand-in for a GPU (tests/standin.py)."""

from __future__ import annotations

import numpy as np
import pytest
import standin

from prefkit.models.load.pipeline import load_pipeline
from prefkit.models.sample import Sampler

pytestmark = pytest.mark.standin
PROMPTS, SEEDS = ["a red dress", "a hat"], [1, 2]


def pixels(pipe):
    sampled = Sampler(pipe, steps=2, height=64, width=64).sample(PROMPTS, SEEDS)
    return np.stack([np.asarray(each.image, int) for each in sampled])


def on_card(pipe):
    """Names of the parts with weights on the card; accelerate leaves meta tensors in place of those that it took away."""
    parts = {"unet": pipe.unet, "text": pipe.text_encoder, "vae": pipe.vae}
    return {name for name, part in parts.items() if any(map(_held, part.parameters()))}


def _held(tensor):
    return isinstance(tensor, standin.Cuda) and not standin.plain(tensor).is_meta


@pytest.mark.parametrize(("mode", "rounding"), [("model", 0), ("sequential", 1)])
def test_an_offloaded_pipeline_samples_the_same_and_leaves_the_card_free(sd, mode, rounding):
    whole, offloaded = load_pipeline(sd, device="cuda"), load_pipeline(sd, device="cuda", offload=mode)
    assert on_card(whole) == {"unet", "text", "vae"} and not on_card(offloaded)
    for _ in range(2):  # the hooks are set again after each call
        assert abs(pixels(offloaded) - pixels(whole)).max() <= rounding
        assert not on_card(offloaded)


@pytest.mark.parametrize("mode", ["model", "sequential"])
def test_a_denoiser_in_training_stays_on_the_card_and_has_no_hooks(sd, mode):
    pipe = load_pipeline(sd, device="cuda", offload=mode, keep_denoiser=True)
    weight = pipe.unet.conv_in.weight
    for _ in range(2):
        pixels(pipe)
        assert on_card(pipe) == {"unet"} and pipe.unet.conv_in.weight is weight
    assert not hasattr(pipe.unet, "_hf_hook") and hasattr(pipe.text_encoder, "_hf_hook")
