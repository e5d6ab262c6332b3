from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image

from prefkit.models import latents
from prefkit.models.capture import maps
from prefkit.models.capture.call import capture
from prefkit.models.sample import Sampler
from prefkit.testing import TINY_KINDS


def picture(width=64, height=64, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("kind", TINY_KINDS)
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_decoding_final_latents_gives_the_pipelines_own_image(load, kind, size):
    pipe = load(kind)
    wiring = capture(pipe, height=64, width=64)
    images = Sampler(pipe, steps=2, height=size[0], width=size[1]).sample(["a cat", "a dog"], [1, 2])
    ours = latents.decode(pipe, wiring, torch.stack([row.latents for row in images]), size)
    for row, image in zip(images, ours, strict=True):
        assert image.size == size[::-1]
        np.testing.assert_array_equal(np.asarray(image), np.asarray(row.image))


@pytest.mark.parametrize("kind", TINY_KINDS)
def test_encoding_is_the_inverse_of_what_goes_into_decode(load, kind):
    pipe = load(kind)
    wiring = capture(pipe, height=64, width=64)
    images = [picture(80, 48, seed) for seed in (0, 1)]
    ours = latents.encode(pipe, wiring, images)
    assert ours.dtype == torch.float32
    assert ours.shape == ((2, 3 * 5, 16) if kind == "flux" else (2, 4, 6, 10))
    seen = []
    pipe.vae.decode = lambda z, **kwargs: seen.append(z) or type(pipe.vae).decode(pipe.vae, z, **kwargs)
    latents.decode(pipe, wiring, ours, (48, 80))
    pixels = pipe.image_processor.preprocess(images)
    with torch.no_grad():
        torch.testing.assert_close(seen[0], pipe.vae.encode(pixels).latent_dist.mode(), rtol=1e-4, atol=1e-5)


def test_packing_is_the_pipelines_own():
    from diffusers import FluxPipeline

    x = torch.randn(2, 4, 6, 10)
    packed = maps.pack(x)
    assert torch.equal(packed, FluxPipeline._pack_latents(x, 2, 4, 6, 10))
    assert torch.equal(maps.unpack(packed, 6, 10), x)


def test_tiny_autoencoder(load):
    pipe = load("sd")
    torch.manual_seed(0)
    pipe.vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8), num_encoder_blocks=(1,) * 4
    )
    wiring = capture(pipe, height=64, width=64)
    ours = latents.encode(pipe, wiring, [picture()])
    with torch.no_grad():
        expected = pipe.vae.encode(pipe.image_processor.preprocess(picture())).latents
    torch.testing.assert_close(ours, expected)


def test_a_vae_that_overflows_in_half_precision_works_in_float32(load):
    pipe = load("sdxl")
    wiring = capture(pipe, height=64, width=64)
    expected = latents.encode(pipe, wiring, [picture()])
    pipe.vae.to(torch.float16)
    ours = latents.encode(pipe, wiring, [picture()])
    torch.testing.assert_close(ours, expected, rtol=0.02, atol=0.02)  # weights were rounded, the work was not
    assert pipe.vae.dtype == torch.float16
