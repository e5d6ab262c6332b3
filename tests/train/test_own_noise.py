"""Noise-tracked pairs: each image with the noise that its own sampling began with."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from prefkit.config import Choice, Generate
from prefkit.errors import CaptureError, UsageError
from prefkit.generate.inputs import Inputs
from prefkit.generate.run import run_generate
from prefkit.models.capture.call import capture
from prefkit.models.load.pipeline import load_pipeline
from prefkit.models.sample import Sampler
from prefkit.train.families.diffusers import DiffusersFamily
from prefkit.train.own_noise import prove
from prefkit.types import Request


@pytest.fixture
def generated(run, pair_rows):
    """generated(kind, dtype) -> (store, recipe): two pairs of candidates that the model itself made."""

    def make(kind, dtype="float32", **given):
        rows = pair_rows(2)
        store, recipe = run(kind, rows=rows, noise="own", **given)
        requests = [Request(row["caption"], row["caption"]) for row in rows]
        store.write_requests(requests)
        settings = Generate(n=2, steps=2, height=64, width=64, dtype=dtype)
        recipe = replace(recipe, generate={"own": settings})
        run_generate(store, recipe, "own", requests=requests)
        made = {(c.request_id, c.index): c for c in store.iter_candidates()}
        for row in rows:
            both = [made[row["caption"], i] for i in (0, 1)]
            row |= {f"candidate_{i}": c.id for i, c in enumerate(both)} | {"request_id": row["caption"]}
            row |= {f"jpg_{i}": c.image for i, c in enumerate(both)}
        for path in store.pairs("main").rglob("*.parquet"):
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.Table.from_pylist(rows), path)
        return store, recipe, {c.id: c for c in made.values()}

    return make


def initial(pipe, prompt, seed):
    """What the pipeline's own preparation returns for this seed, in the scheduler's layout."""
    seen, prepare = [], pipe.prepare_latents

    def watched(*args, **kwargs):
        found = prepare(*args, **kwargs)
        seen.append(found[0] if isinstance(found, tuple) else found)
        return found

    pipe.prepare_latents = watched
    Sampler(pipe, steps=2, height=64, width=64).sample([prompt], [seed])
    del pipe.prepare_latents
    return seen[0][0]


@pytest.mark.parametrize("kind, dtype", [("sd3", "float32"), ("flux", "float32"), ("flux", "bfloat16")])
def test_the_noise_is_the_samplers_own_bit_for_bit(generated, folders, loop_of, kind, dtype):
    store, recipe, made = generated(kind, dtype, objective=Choice("dpo"))
    loop = loop_of(store, recipe)
    pipe = load_pipeline(folders[kind], dtype=dtype)
    (batch,) = loop.micro_batches(0)[0]
    noises = batch.draw.noise.unbind(0)
    for place, noise in enumerate(noises):
        pair = batch.members[place % 2]
        candidate = made[pair.sides[place // 2].candidate]
        assert torch.equal(noise, initial(pipe, pair.prompt, candidate.seed).float())
    assert not torch.equal(noises[0], noises[2]) and torch.equal(batch.draw.time[:2], batch.draw.time[2:])
    again = loop.data.batches(loop.family, [(pair, 7) for pair in batch.members])
    assert torch.equal(next(iter(again)).draw.noise, batch.draw.noise)  # whatever the visit


def test_models_and_pairs_without_such_a_noise_are_refused(generated, run, loop_of, monkeypatch):
    with pytest.raises(UsageError, match="flow models"):
        loop_of(*generated("sd")[:2])
    store, recipe = run("sd3", where="foreign", noise="own")
    with pytest.raises(UsageError, match="its noise is unknown"):
        loop_of(store, recipe)


def test_a_pipeline_that_begins_with_another_noise_is_refused(generated, loop_of, monkeypatch):
    from diffusers import StableDiffusion3Pipeline

    plain = StableDiffusion3Pipeline.prepare_latents
    monkeypatch.setattr(StableDiffusion3Pipeline, "prepare_latents", lambda *a, **k: 1.001 * plain(*a, **k))
    store, recipe, _ = generated("sd3")
    with pytest.raises(CaptureError, match="cannot be remade"):
        loop_of(store, recipe)


def test_models_with_images_beside_their_noise_are_refused(folders):
    import diffusers

    image = Image.new("RGB", (64, 64), "red")
    family = DiffusersFamily(inputs=Inputs({"image": "extra.person"}, None))
    family.pipe = diffusers.FluxKontextPipeline(**load_pipeline(folders["flux"]).components)
    call = {"image": image, "height": 64, "width": 64, "max_area": 64 * 64, "_auto_resize": False}
    family.wiring = capture(family.pipe, call=call)
    with pytest.raises(UsageError, match=r"model\.inputs"):
        prove(family, torch.zeros(16, 16), (64, 64))
