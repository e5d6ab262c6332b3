"""What a VAE or a text encoder turns into NaN enters no cache, and is named."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import AutoencoderKL

from prefkit.errors import UsageError
from prefkit.train.data import batches as data
from prefkit.train.data.cache import Cache
from prefkit.train.run import run_train


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_image_that_the_vae_cannot_encode_is_named(run, pair_rows, monkeypatch, value):
    inner = AutoencoderKL.encode

    def encode(self, x, *args, **kwargs):
        found = inner(self, x, *args, **kwargs)
        found.latent_dist.mean[-1, 0, 0, 0] = value
        return found

    monkeypatch.setattr(AutoencoderKL, "encode", encode)
    store, recipe = run("sd", rows=pair_rows(2))
    with pytest.raises(UsageError, match=r"row \d+: the latents of image [0-9a-f]{40,} are not finite.*Remove the row"):
        run_train(store, recipe, "dpo")
    assert not list(store.train("dpo").parent.rglob("latents/*.safetensors"))


def test_a_condition_of_nan_is_named(tmp_path):
    class Family:
        def conditions(self, requests, size):
            return [{"text": torch.full((1, 4), math.nan)} for _ in requests]

    class Pairs(data.PairData):
        def size(self, pair):
            return 64, 64

        def condition_key(self, pair):
            return pair * 8

        def request(self, pair):
            from prefkit.types import Request

            return Request(pair, f"a hat {pair}")

    pairs = Pairs(["a"], Cache(tmp_path / "latents"), Cache(tmp_path / "conditions"), {})
    with pytest.raises(UsageError, match="the prompt 'a hat a' .* gave NaN"):
        data.fill_conditions(pairs, Family(), (0, 1))
    assert not len(pairs.conditions)
