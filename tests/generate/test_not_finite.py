"""NaN and infinity are found while images are still tensors: a black image is not a result."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL

from prefkit.api import Run
from prefkit.config import Model
from prefkit.errors import PrefkitError, TooManyFailures, TrainingError
from prefkit.models import latents
from prefkit.models.capture.call import capture
from prefkit.models.load.pipeline import load_pipeline
from prefkit.models.sample import Sampler


def breaking(monkeypatch: pytest.MonkeyPatch, sample: int, value: float) -> None:
    """The VAE gives `value` in one pixel of this sample of every batch."""
    inner = AutoencoderKL.decode

    def decode(self, z, *args, **kwargs):
        found = inner(self, z, *args, **kwargs)
        pixels = found[0]
        pixels[sample if len(pixels) > sample else 0, 0, 3, 3] = value
        return found

    monkeypatch.setattr(AutoencoderKL, "decode", decode)


@pytest.fixture(scope="module")
def overflowing(sd, tmp_path_factory):
    """A pipeline whose VAE decodes everything to NaN."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(sd)
    with torch.no_grad():
        pipe.vae.decoder.conv_out.weight.fill_(math.nan)
    folder = tmp_path_factory.mktemp("nan")
    pipe.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_generate_stops_at_a_first_batch_of_nan(recipe, overflowing):
    run = Run(recipe=recipe)
    run = Run(recipe=replace(run.recipe, model=Model(base=str(overflowing))))
    with pytest.raises(PrefkitError, match="every candidate of the first batch failed.*not finite.*--dtype bfloat16"):
        run.generate()
    assert not list(run.store.iter_candidates(["own"]))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_of_a_batch_fails_and_the_others_are_what_they_were(recipe, tmp_path, monkeypatch, value):
    run = Run(recipe=recipe)
    run.generate(limit=1)
    whole = {c.index: c.image for c in run.store.iter_candidates(["own"])}
    breaking(monkeypatch, 1, value)
    other = Run(recipe=replace(run.recipe, run=str(tmp_path / "other")))
    with pytest.raises(TooManyFailures) as raised:
        other.generate(limit=1)
    counts = raised.value.counts["own"]
    assert (counts["made"], counts["failed"]) == (3, 1)
    frame = other.candidates("own").set_index("index")
    assert "not finite" in frame.error[1] and frame.error.notna().sum() == 1
    found = {c.index: c.image for c in other.store.iter_candidates(["own"]) if c.error is None}
    assert found == {index: image for index, image in whole.items() if index != 1}


def test_latents_that_are_not_finite_count_too(sd, monkeypatch):
    """Whatever the VAE makes of them."""
    pipe = load_pipeline(str(sd), device="cpu")
    monkeypatch.setattr(AutoencoderKL, "decode", lambda self, z, **how: (torch.zeros(len(z), 3, 64, 64),))
    step = pipe.scheduler.step

    def broken(*args, **kwargs):
        found = step(*args, **kwargs)
        found[0][0, 0, 0, 0] = math.nan
        return found

    monkeypatch.setattr(pipe.scheduler, "step", broken)
    found = Sampler(pipe, steps=1, height=64, width=64, guidance=1.0).sample(["a", "b"], [1, 2])
    assert [sampled.finite for sampled in found] == [False, True]


def test_decode_refuses_them(sd, overflowing):
    pipe = load_pipeline(str(sd), device="cpu")
    wiring = capture(pipe, call={"height": 64, "width": 64})
    z = torch.zeros(2, 4, 8, 8)
    assert len(latents.decode(pipe, wiring, z)) == 2
    with pytest.raises(TrainingError, match="not finite"):
        latents.decode(load_pipeline(str(overflowing), device="cpu"), wiring, z)


def test_a_black_image_of_a_finite_vae_is_a_result(recipe, monkeypatch):
    monkeypatch.setattr(AutoencoderKL, "decode", lambda self, z, **how: (torch.full((len(z), 3, 64, 64), -1.0),))
    counts = Run(recipe=recipe).generate(limit=1)["own"]
    assert (counts["made"], counts["failed"]) == (4, 0)


def test_nothing_of_it_is_said_in_a_good_run(recipe, cli):
    code, out, err = cli("generate", "-r", recipe, "--limit", 1, "--json")
    assert code == 0 and json.loads(out)["own"]["failed"] == 0 and "finite" not in err
