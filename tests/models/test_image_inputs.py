"""Pipelines that take an image: what they hold beside the sample is kept with the condition, one request's at a time."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from prefkit.errors import CaptureError
from prefkit.models import latents
from prefkit.models.capture import capture
from prefkit.models.conditions import capture_conditions, collate
from prefkit.models.load import load_pipeline
from prefkit.models.maps import BEHIND
from prefkit.models.predict import predict
from prefkit.models.record import watch
from prefkit.models.sample import Sampler
from prefkit.testing import wake_zeros
from tests.models.test_more_pipelines import build, embedding

PROMPTS = ["a red cat", "a dog in a hat"]
SIZE = {"height": 64, "width": 64}


def picture(seed, size=(64, 64)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def mask():
    found = np.zeros((64, 64), np.uint8)
    found[16:48, 8:40] = 255
    return Image.fromarray(found)


def inpaint(tiny):
    base = load_pipeline(tiny["sd"])
    unet = diffusers.UNet2DConditionModel.from_config({**base.unet.config, "in_channels": 9})
    wake_zeros(unet)
    parts = {**base.components, "unet": unet.eval()}
    return diffusers.StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)


def kontext(tiny):
    return diffusers.FluxKontextPipeline(**load_pipeline(tiny["flux"]).components)


def klein_text(self, prompt, **_):
    prompts = [prompt] if isinstance(prompt, str) else prompt
    return torch.stack([embedding(p, 12) for p in prompts]), torch.zeros(len(prompts), 12, 4)


def klein(tiny=None):
    net = diffusers.Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=64,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    vae.bn.running_mean.copy_(torch.randn(16, generator=generator))
    vae.bn.running_var.copy_(torch.rand(16, generator=generator) * 3 + 0.2)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return build("Flux2KleinPipeline", klein_text, vae, net, scheduler)


KONTEXT = {"max_area": 64 * 64, "_auto_resize": False}
CASES = {  # builder -> fixed arguments, images of the two requests, input, output, layout, affine
    inpaint: ({}, [{"image": picture(i), "mask_image": mask()} for i in range(2)],
              ("extra_channels", "identity", "plain", "scale")),
    kontext: (KONTEXT, [{"image": picture(i, size)} for i, size in enumerate([(64, 64), (64, 64)])],
              ("extra_tokens", "first_tokens", "packed", "scale_shift")),
    klein: ({}, [{"image": picture(i)} for i in range(2)], ("extra_tokens", "first_tokens", "packed", "batch_norm")),
}  # fmt: skip


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
    assert not torch.equal(conditions[0][BEHIND], conditions[1][BEHIND])
    condition, real = collate(wiring, conditions), []
    for prompt, own in zip(PROMPTS, images, strict=True):  # seed 0: inpainting draws the masked image's latents too
        call = {"prompt": [prompt], "generator": [torch.Generator().manual_seed(0)], "num_inference_steps": 3, **SIZE}
        real.append(watch(pipe, wiring.denoiser, call | fixed | own | dict(wiring.no_guidance)).steps)
    for first, second in zip(*real, strict=True):
        time = torch.full((2,), first.time / 1000 if wiring.prediction == "flow" else first.time)
        with torch.no_grad():
            ours = predict(net, wiring, torch.cat([first.before, second.before]), time, condition)
        theirs = torch.cat([first.model_output, second.model_output])
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-4, atol=1e-5)
        with torch.no_grad():  # each other's images give something else
            swapped = condition | {BEHIND: condition[BEHIND].flip(0)}
            wrong = predict(net, wiring, torch.cat([first.before, second.before]), time, swapped)
        assert (wrong - theirs).abs().max() > 1e-3


@pytest.mark.parametrize("builder", CASES, ids=lambda f: f.__name__)
def test_latents_of_an_edited_image_decode_to_it(tiny, builder):
    torch.manual_seed(0)
    pipe = builder(tiny)
    fixed, images, _ = CASES[builder]
    wiring = capture(pipe, **SIZE, call=fixed | images[0])
    rows = Sampler(pipe, steps=2, **SIZE, extra_call=fixed).sample(PROMPTS, [1, 2], images[0])
    decoded = latents.decode(pipe, wiring, torch.stack([row.latents for row in rows]), (64, 64))
    for row, image in zip(rows, decoded, strict=True):
        assert np.array_equal(np.asarray(row.image), np.asarray(image))
    assert latents.encode(pipe, wiring, decoded).shape[1:] == rows[0].latents.shape


def test_flux2_without_an_image_is_proven_too():
    torch.manual_seed(0)
    pipe = klein()
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
    pipe = diffusers.StableDiffusionInpaintPipeline(**load_pipeline(tiny["sd"]).components)
    with pytest.raises(CaptureError, match="StableDiffusionInpaintPipeline: final latents"):
        capture(pipe, **SIZE, call={"image": picture(0), "mask_image": mask()})
