"""Pipelines that differ in what they do around the denoiser."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prefkit.errors import CaptureError
from prefkit.models import latents
from prefkit.models.capture.call import capture
from prefkit.models.capture.conditions import capture_conditions, collate
from prefkit.models.capture.maps import STATE
from prefkit.models.capture.prove import noise_level
from prefkit.models.capture.record import record_run
from prefkit.models.predict import predict
from prefkit.models.sample import Sampler
from tests.models import kinds

PROMPTS = ["a red cat", "a dog in a hat"]
EXPECTED = {  # builder -> input, output, clock, layout, affine
    kinds.sd2: ("identity", "identity", "index", "plain", "scale"),
    kinds.sd35: ("identity", "identity", "steps_sigma", "plain", "scale_shift"),
    kinds.pixart: ("identity", "first_half", "index", "plain", "scale"),
    kinds.z_image: ("list_of_frames", "frame_negated", "1-sigma", "plain", "scale_shift"),
    kinds.lumina2: ("identity", "negated", "1-sigma", "plain", "scale_shift"),
    kinds.qwen_image: ("identity", "identity", "sigma", "packed_frame", "mean_std"),
    kinds.sana: ("identity", "identity", "steps_sigma", "plain", "scale"),
    kinds.chroma: ("identity", "identity", "sigma", "packed", "scale_shift"),
    kinds.aura_flow: ("identity", "identity", "sigma", "plain", "scale"),
    kinds.cogview4: ("identity", "identity", "steps_sigma", "plain", "scale"),
    kinds.hunyuan_dit: ("identity", "first_half", "index", "plain", "scale"),
    kinds.kolors: ("identity", "identity", "index", "plain", "scale"),
    kinds.hidream: ("identity", "negated", "steps_sigma", "plain", "scale_shift"),
    kinds.lumina: ("identity", "first_half_negated", "1-sigma", "plain", "scale"),
}


@pytest.mark.parametrize("builder", EXPECTED, ids=lambda f: f.__name__)
def test_proven_and_reproduced(builder):
    torch.manual_seed(0)
    pipe = builder()
    call = kinds.extras(pipe)
    wiring = capture(pipe, height=64, width=64, call=call)
    assert (wiring.input, wiring.output, wiring.clock, wiring.layout, wiring.affine) == EXPECTED[builder]
    prompts = PROMPTS if builder is not kinds.qwen_image else ["a red cat", "a big dog"]  # of one length
    condition = collate(wiring, capture_conditions(pipe, wiring, prompts, height=64, width=64, call=call))
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    run = {"prompt": prompts, "generator": generators, "num_inference_steps": 3, "height": 64, "width": 64}
    net = getattr(pipe, wiring.denoiser)
    for step in record_run(pipe, wiring.denoiser, run | call | dict(wiring.no_guidance)).steps:
        time = torch.full((2,), step.time / 1000 if wiring.prediction == "flow" else step.time)
        x_t = STATE[wiring.state](step.before, noise_level(pipe, wiring.prediction, step))
        with torch.no_grad():
            ours = predict(net, wiring, x_t, time, condition)
        torch.testing.assert_close(ours, step.model_output.float(), rtol=1e-4, atol=1e-5)
    rows = Sampler(pipe, steps=2, height=64, width=64, extra_call=call).sample(PROMPTS, [1, 2])
    images = latents.decode(pipe, wiring, torch.stack([row.latents for row in rows]), (64, 64))
    for row, image in zip(rows, images, strict=True):
        assert np.array_equal(np.asarray(row.image), np.asarray(image))
    assert latents.encode(pipe, wiring, images).shape[1:] == rows[0].latents.shape


REFUSED = {
    kinds.wan: (
        r"WanPipeline: a run of 4 steps made 4 scheduler steps, a call of vae.decode and 0 images.* Video is not",
        {"num_frames": 5},
    ),
    kinds.cascade: ("StableCascadeDecoderPipeline has no denoiser called unet or transformer .components: decoder", {}),
}


@pytest.mark.parametrize("builder", REFUSED, ids=lambda f: f.__name__)
def test_refused_by_name(builder):
    words, call = REFUSED[builder]
    with pytest.raises(CaptureError, match=words):
        capture(builder(), height=32, width=32, call=call)
