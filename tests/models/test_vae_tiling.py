"""`model.vae_tiling`: large images pass through the VAE in tiles, in training and in generation."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace as Has

import pytest
import torch

from prefkit.config import Generate, Model
from prefkit.errors import UsageError
from prefkit.generate.generators import generator_spec
from prefkit.models import latents
from prefkit.models.capture.call import capture
from prefkit.models.load.pipeline import _enable_tiling
from prefkit.models.load.revision import base_revision
from prefkit.models.sample import Sampler
from tests.models.test_latents import picture

TILE = 64  # the tiny VAE's sample_size


def largest_inputs(pipe):
    """The largest side that the encoder sees in pixels, and the decoder in latent cells."""
    sizes = {"encoder": 0, "decoder": 0}

    def measure(name, inputs):
        sizes[name] = max(sizes[name], *inputs[0].shape[-2:])

    for name in sizes:
        getattr(pipe.vae, name).register_forward_pre_hook(lambda _, inputs, name=name: measure(name, inputs))
    return sizes


@pytest.mark.parametrize("options", [{}, {"sequential_offload": True}])
def test_large_images_pass_in_tiles(load, options):
    seen, images = {}, [picture(128, 128)]
    for tiling in (False, True):
        pipe = load("sd", vae_tiling=tiling, **options)
        wiring = capture(pipe, height=64, width=64)
        sizes = largest_inputs(pipe)
        encoded = latents.encode(pipe, wiring, images)
        decoded = latents.decode(pipe, wiring, encoded, (128, 128))[0]
        seen[tiling] = (encoded, decoded.size, sizes)
    (plain, size, whole), (tiled, tiled_size, tiles) = seen[False], seen[True]
    assert size == tiled_size == (128, 128) and plain.shape == tiled.shape
    if not options:
        assert whole == {"encoder": 128, "decoder": 16} and tiles == {"encoder": TILE, "decoder": TILE // 8}
    assert not torch.equal(plain, tiled) and (plain - tiled).abs().mean() < plain.std()


def test_generation_in_tiles(load):
    pipe = load("sd", vae_tiling=True)
    sizes = largest_inputs(pipe)
    (row,) = Sampler(pipe, steps=1, height=128, width=128).sample(["a cat"], [1])
    assert row.image.size == (128, 128) and sizes["decoder"] == TILE // 8


def test_it_is_part_of_what_candidates_and_trainings_mean(tiny):
    plain = Model(str(tiny["sd"]))
    tiled = replace(plain, vae_tiling=True)
    assert base_revision(tiled) == {**base_revision(plain), "vae_tiling": True}
    assert generator_spec(plain, Generate()) != generator_spec(tiled, Generate())


def test_a_vae_without_tiles_is_refused():
    for pipe in (Has(), Has(vae=None), Has(vae=Has())):
        with pytest.raises(
            UsageError, match="model.vae_tiling: the VAE of .* does not support tiling. Remove the key."
        ):
            _enable_tiling(pipe)
