"""A VAE's posterior: what is cached of it, and samples that follow (group, visit, image) alone."""

from __future__ import annotations

import json
import math

import pytest
import torch

from prefkit.errors import UsageError
from prefkit.models import latents as encoding
from prefkit.models.capture.maps import unpack
from prefkit.train.families.diffusers import DiffusersFamily
from prefkit.train.posterior import seen
from prefkit.train.run import run_train
from prefkit.train.space import cache_space
from prefkit.types import Candidate


@pytest.mark.parametrize("kind", ["sd", "flux"])
def test_mean_and_deviation_are_the_vaes_in_the_schedulers_layout(folders, png, rng_of, kind):
    family = DiffusersFamily()
    family.load({"base": str(folders[kind])})
    images = [Candidate(str(i), "", 0, 0, image=png(rng_of(i), smooth=False)) for i in range(2)]
    vae = family.pipe.vae
    pixels = family.pipe.image_processor.preprocess([c.pil() for c in images])
    with torch.no_grad():
        theirs = vae.encode(pixels).latent_dist
    shift = vae.config.shift_factor if kind == "flux" else 0.0
    for i, tree in enumerate(family.posteriors(images)):
        mean, std = tree["latents"], tree["std"]
        if kind == "flux":
            mean, std = (unpack(both[None], *theirs.mean.shape[2:])[0] for both in (mean, std))
        torch.testing.assert_close(mean, (theirs.mean[i] - shift) * vae.config.scaling_factor, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(std, theirs.std[i] * vae.config.scaling_factor, rtol=1e-4, atol=1e-6)


@pytest.fixture
def rng_of():
    import numpy as np

    return np.random.default_rng


def test_samples_follow_the_posterior_and_nothing_but_group_visit_and_image():
    tree = {"latents": torch.full((4, 8, 8), 3.0), "std": torch.linspace(0.1, 2, 256).view(4, 8, 8)}
    drawn = torch.stack([seen(tree, "g", visit, "k") for visit in range(2000)])
    noise = (drawn - 3) / tree["std"]
    # 512,000 standard normal numbers
    assert abs(noise.mean()) < 5 / math.sqrt(noise.numel()) and abs(noise.std() - 1) < 5 / math.sqrt(2 * noise.numel())
    torch.manual_seed(7)
    assert torch.equal(seen(tree, "g", 5, "k"), drawn[5])
    others = [seen(tree, "h", 5, "k"), seen(tree, "g", 6, "k"), seen(tree, "g", 5, "l")]
    assert not any(torch.equal(other, drawn[5]) for other in others)
    assert torch.equal(seen(tree, "g", -1, "k"), tree["latents"])  # measurements
    assert torch.equal(seen({"latents": tree["latents"]}, "g", 0, "k"), tree["latents"])  # kept latents


def lines(store):
    rows = [json.loads(line) for line in (store.train("dpo") / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("seconds", "crc")} for row in rows]


def test_training_on_samples_resumes_exactly_and_keeps_its_references(run):
    settings = {"steps": 4, "validation": 1, "posterior": "sample"}
    whole, recipe = run(where="whole", **settings)
    estimated = cache_space(whole, recipe, "dpo")["MB latents"]
    run_train(whole, recipe, "dpo")
    assert lines(whole)[1]["loss"] == pytest.approx(math.log(2), abs=1e-6)  # policy and reference see one sample
    plain, recipe = run(where="plain", **settings | {"posterior": "mean"})
    assert estimated == pytest.approx(2 * cache_space(plain, recipe, "dpo")["MB latents"])
    parts, recipe = run(where="parts", cache_reference=True, **settings)
    run_train(parts, recipe, "dpo", limit=3)
    run_train(parts, recipe, "dpo")
    assert lines(parts) == lines(whole)
    parts.train("dpo").rename(parts.train("dpo").with_name("first"))
    run_train(parts, recipe, "dpo")  # from the kept errors, which are those of the samples
    assert lines(parts) == lines(whole)


def test_a_vae_without_a_distribution_falls_back_with_a_word(run, monkeypatch, capsys):
    moments = encoding._moments
    monkeypatch.setattr(encoding, "_moments", lambda *given: (moments(*given)[0], None))  # as AutoencoderTiny gives
    found = {}
    for posterior in ("mean", "sample"):
        store, recipe = run(where=posterior, steps=1, posterior=posterior)
        run_train(store, recipe, "dpo")
        found[posterior] = lines(store)
        assert ("gives no distribution" in capsys.readouterr().err) == (posterior == "sample")
    assert found["mean"] == found["sample"]
    with pytest.raises(UsageError, match="posterior"):
        run_train(*run(where="mode", posterior="mode"), "dpo")
