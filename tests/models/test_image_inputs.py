"""Pipelines that take an image: what they hold beside the sample is kept with the condition, one request's at a time."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch

from prefkit.errors import CaptureError
from prefkit.models import latents
from prefkit.models.capture.call import capture
from prefkit.models.capture.conditions import capture_conditions, collate
from prefkit.models.capture.maps import EXTRA_INPUT_KEY, STATE
from prefkit.models.capture.prove import noise_level
from prefkit.models.capture.record import record_run
from prefkit.models.load.pipeline import load_pipeline
from prefkit.models.predict import predict
from prefkit.models.sample import Sampler
from tests.models.editing import CASES, SIZE, flux2, klein, mask, picture, size_for, small_areas

PROMPTS = ["a red cat", "a big dog"]  # of one length


@pytest.fixture(autouse=True)
def areas(monkeypatch):
    small_areas(monkeypatch)


@pytest.mark.parametrize("builder", CASES, ids=lambda f: f.__name__)
def test_real_steps_with_each_requests_own_image_are_reproduced(tiny, builder):
    torch.manual_seed(0)
    pipe = builder(tiny)
    fixed, images, expected = CASES[builder]
    wiring = capture(pipe, **SIZE, call=fixed | images[0])
    assert (wiring.input, wiring.output, wiring.layout, wiring.affine) == expected
    net = getattr(pipe, wiring.denoiser)
    conditions = [
        capture_conditions(pipe, wiring, [prompt], **SIZE, call=fixed | own)[0]
        for prompt, own in zip(PROMPTS, images, strict=True)
    ]
    assert not torch.equal(conditions[0][EXTRA_INPUT_KEY], conditions[1][EXTRA_INPUT_KEY])
    condition, real = collate(wiring, conditions), []
    for prompt, own in zip(PROMPTS, images, strict=True):  # seed 0: inpainting draws the masked image's latents too
        call = {"prompt": [prompt], "generator": [torch.Generator().manual_seed(0)], "num_inference_steps": 3}
        call |= size_for(pipe) | fixed | own | dict(wiring.no_guidance)
        real.append(record_run(pipe, wiring.denoiser, call).steps)
    for first, second in zip(*real, strict=True):
        time = torch.full((2,), first.time / 1000 if wiring.prediction == "flow" else first.time)
        both = torch.cat([first.before, second.before])
        x_t = STATE[wiring.state](both, noise_level(pipe, wiring.prediction, first))
        with torch.no_grad():
            ours = predict(net, wiring, x_t, time, condition)
        theirs = torch.cat([first.model_output, second.model_output])
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-4, atol=1e-5)
        with torch.no_grad():  # each other's images give something else
            swapped = condition | {EXTRA_INPUT_KEY: condition[EXTRA_INPUT_KEY].flip(0)}
            wrong = predict(net, wiring, x_t, time, swapped)
        assert (wrong - theirs).abs().max() > 1e-4 > 10 * (ours - theirs).abs().max()


@pytest.mark.parametrize("builder", CASES, ids=lambda f: f.__name__)
def test_latents_of_an_edited_image_decode_to_it(tiny, builder):
    torch.manual_seed(0)
    pipe = builder(tiny)
    fixed, images, _ = CASES[builder]
    wiring = capture(pipe, **SIZE, call=fixed | images[0])
    rows = Sampler(pipe, steps=2, **size_for(pipe), extra_call=fixed).sample(PROMPTS, [1, 2], images[0])
    decoded = latents.decode(pipe, wiring, torch.stack([row.latents for row in rows]), (64, 64))
    for row, image in zip(rows, decoded, strict=True):  # one by one and together, or by another order of operations
        off = np.abs(np.asarray(row.image).astype(int) - np.asarray(image))
        assert off.max() <= 1 and (off > 0).mean() < 1e-3
    assert latents.encode(pipe, wiring, decoded).shape[1:] == rows[0].latents.shape


@pytest.mark.parametrize("builder", [klein, flux2], ids=lambda f: f.__name__)
def test_flux2_without_an_image_is_proven_too(builder):
    torch.manual_seed(0)
    pipe = builder()
    wiring = capture(pipe, **SIZE)
    assert (wiring.input, wiring.output, wiring.layout, wiring.affine) == (
        "identity",
        "identity",
        "packed",
        "batch_norm",
    )
    moments = latents.encode(pipe, wiring, [picture(0)])
    grid = pipe._patchify_latents(pipe.vae.encode(pipe.image_processor.preprocess(picture(0))).latent_dist.mode())
    mean = pipe.vae.bn.running_mean.view(1, -1, 1, 1)
    std = (pipe.vae.bn.running_var + pipe.vae.config.batch_norm_eps).sqrt().view(1, -1, 1, 1)
    torch.testing.assert_close(moments, pipe._pack_latents((grid - mean) / std), rtol=1e-4, atol=1e-5)


def test_inpainting_by_blending_is_refused(tiny):
    """An ordinary network whose samples are mixed with the image after each step: no such step is the network's."""
    for kind, base in (("StableDiffusionInpaintPipeline", "sd"), ("FluxInpaintPipeline", "flux")):
        pipe = getattr(diffusers, kind)(**load_pipeline(tiny[base]).components)
        with pytest.raises(CaptureError, match=f"{kind} changes the sample between"):
            capture(pipe, **SIZE, call={"image": picture(0), "mask_image": mask()})
