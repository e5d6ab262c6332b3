"""The generate stage on a tiny Stable Diffusion."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
from PIL import Image

from prefkit import registry
from prefkit.api import Run
from prefkit.config import Generate, Model
from prefkit.errors import FingerprintError, PrefkitError, UsageError
from prefkit.generate import run as stage
from prefkit.generate.generators import candidate_seed, generator_spec
from prefkit.store import Store


def pixels(candidate):
    return np.asarray(Image.open(io.BytesIO(candidate.image)))


def table(run, name="own"):
    return {c.id: c for c in run.store.iter_candidates([name])}


def test_candidates_hold_image_latents_and_provenance(recipe):
    run = Run(recipe=recipe)
    counts = run.generate(limit=2)["own"]
    assert (counts["wanted"], counts["made"], counts["failed"]) == (8, 8, 0)
    found = list(table(run).values())
    for c in found:
        assert pixels(c).shape == (64, 64, 3) and c.prompt and c.sha256
        assert c.seed == candidate_seed(0, c.request_id, c.index)
        assert safetensors.torch.load(c.payload)["latents"].shape[0] == 4
    assert len({c.sha256 for c in found}) == 8


def test_a_rerun_does_nothing_and_a_larger_n_adds(recipe):
    run = Run(recipe=recipe)
    run.generate(limit=1)
    before = table(run)
    assert run.generate(limit=1)["own"]["made"] == 0
    more = replace(run.recipe, generate={"own": replace(run.recipe.generate["own"], n=6)})
    assert Run(recipe=more).generate(limit=1)["own"]["made"] == 2
    after = table(run)
    assert set(before) < set(after) and all(after[k].sha256 == before[k].sha256 for k in before)


def test_a_candidate_is_rendered_again_from_its_provenance(recipe, sd):
    """With diffusers alone: the model, the prompt, the seed and the settings of the spec."""
    import torch
    from diffusers import StableDiffusionPipeline

    run = Run(recipe=recipe)
    run.generate(limit=1)
    c = next(iter(table(run).values()))
    spec = run.store.candidates("own").spec()
    pipe = StableDiffusionPipeline.from_pretrained(sd)
    settings = spec["settings"]
    image = pipe(
        c.prompt,
        num_inference_steps=settings["steps"],
        guidance_scale=settings.get("guidance", 7.5),
        height=settings["height"],
        width=settings["width"],
        generator=torch.Generator("cpu").manual_seed(c.seed),
    ).images[0]
    assert np.abs(np.asarray(image).astype(int) - pixels(c)).max() <= 1


def test_other_settings_are_refused_by_key(recipe):
    run = Run(recipe=recipe)
    run.generate(limit=1)
    other = replace(run.recipe, generate={"own": replace(run.recipe.generate["own"], steps=3)})
    with pytest.raises(
        FingerprintError, match=r"settings\.steps: stored 2, requested 3\)\. Use another name under generate"
    ):
        Run(recipe=other).generate(limit=1)


def test_batch_size_and_order_leave_images_as_they_are(recipe, tmp_path):
    run = Run(recipe=recipe)
    run.generate(limit=2)
    alone = replace(
        run.recipe, run=str(tmp_path / "two"), generate={"own": replace(run.recipe.generate["own"], batch_size=1)}
    )
    two = Run(recipe=alone)
    two.generate(limit=2)
    one, other = table(run), table(two)
    assert set(one) == set(other)
    assert max(np.abs(pixels(one[k]).astype(int) - pixels(other[k])).max() for k in one) <= 1


def test_ranks_that_cannot_communicate_are_refused(recipe, monkeypatch):
    """A process that silently made every second batch would leave the others to nobody."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="MASTER_ADDR is not.*--shard auto"):
        Run(recipe=recipe).generate(limit=3)


def test_out_of_memory_halves_the_batch_and_says_so(recipe, capsys):
    import torch

    sizes = []

    def call(requests, seeds):
        sizes.append(len(requests))
        if len(requests) > 2:
            raise torch.OutOfMemoryError("no room")
        return [{"image": None, "extra": {}} for _ in requests]

    results, size = stage.answer(call, [(None, i, i, str(i)) for i in range(8)], 8)
    assert sizes == [8, 4, 2, 2, 2, 2] and size == 2 and len(results) == 8
    assert all(r["extra"] == {"batch": 2} for r in results)
    assert "batches of 2" in capsys.readouterr().err


def test_a_failing_item_is_recorded_and_tried_again(recipe, tmp_path):
    (tmp_path / "gen.py").write_text(
        "from PIL import Image\nfrom pathlib import Path\n"
        "def draw(prompts, seeds):\n"
        f"    if any('hat' in p for p in prompts) and not Path({str(tmp_path / 'ok')!r}).exists():\n"
        "        raise RuntimeError('no hats')\n"
        "    return [Image.new('RGB', (8, 8), (s % 255, 0, 0)) for s in seeds]\n"
    )
    run = Run(recipe=recipe)
    made = replace(
        run.recipe,
        generate={"file": replace(run.recipe.generate["own"], use=f"{tmp_path}/gen.py:draw", max_failed=1.0)},
    )
    run = Run(recipe=made)
    counts = run.generate()["file"]
    assert counts["failed"] > 0 and counts["made"] + counts["failed"] == counts["wanted"]
    frame = run.candidates("file")
    assert frame.error.dropna().unique().tolist() == ["RuntimeError: no hats"]
    (tmp_path / "ok").touch()
    again = run.generate()["file"]
    assert again["made"] == counts["failed"] and again["failed"] == 0
    assert run.candidates("file").error.isna().all()


def test_all_failing_stops_with_the_reason(recipe, tmp_path):
    (tmp_path / "gen.py").write_text("def draw(prompts, seeds):\n    raise RuntimeError('broken')\n")
    run = Run(recipe=recipe)
    made = replace(run.recipe, generate={"file": replace(run.recipe.generate["own"], use=f"{tmp_path}/gen.py:draw")})
    with pytest.raises(PrefkitError, match="every candidate of the first batch failed: RuntimeError: broken"):
        Run(recipe=made).generate()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "n is 0"),
        ({"splits": ["dev"]}, "no request is in the splits"),
        (
            {"use": "gen.py:draw", "model": "dpo"},
            "model is dpo, a trained model, which gen.py:draw cannot load",
        ),
        ({"use": "nothing"}, "no generator is called 'nothing'"),
        ({"call": {"foo": 1}}, "takes no argument foo"),
        ({"dtype": "float13"}, "dtype 'float13'"),
        ({"scheduler": "Nope"}, "no scheduler called 'Nope'"),
    ],
)
def test_settings_that_cannot_be_are_refused(recipe, change, message):
    run = Run(recipe=recipe)
    made = replace(run.recipe, generate={"own": replace(run.recipe.generate["own"], **change)})
    with pytest.raises(UsageError, match=message):
        Run(recipe=made).generate()


def test_what_the_safety_checker_blanks_is_an_error_row_and_not_made_again(recipe, monkeypatch, capsys):
    """The pipeline's own call, with a checker that blanks the first image of each batch (of 4)."""
    from diffusers import StableDiffusionPipeline

    from prefkit.models.load import pipeline as load

    class Checked(StableDiffusionPipeline):
        def run_safety_checker(self, image, device, dtype):
            flags = [i == 0 for i in range(len(image))]
            image[0] = -1
            return image, flags

    def loaded(*args, **kwargs):
        pipe = real(*args, **kwargs)
        pipe.__class__ = Checked
        return pipe

    real = load.load_pipeline
    monkeypatch.setattr(load, "load_pipeline", loaded)
    counts = Run(recipe=recipe).generate(limit=2)["own"]
    assert (counts["made"], counts["flagged"], counts["failed"]) == (6, 2, 0)
    assert "the safety checker blanked 2 images" in capsys.readouterr().err
    run = Run(recipe=recipe)
    flagged = [c for c in table(run).values() if c.error]
    assert len(flagged) == 2 and all(c.error.startswith("safety checker") for c in flagged)
    assert all(c.image is None and c.payload is None for c in flagged)
    again = run.generate(limit=2)["own"]
    assert (again["present"], again["made"], again["flagged"]) == (8, 0, 0)


def test_a_first_batch_that_is_all_flagged_does_not_stop_the_stage(recipe, monkeypatch):
    from prefkit.generate.generators import FLAGGED

    run = Run(recipe=recipe)
    monkeypatch.setattr(stage, "open_generator", lambda *_: lambda requests, seeds: [{"error": FLAGGED}] * len(seeds))
    assert run.generate(limit=2)["own"]["flagged"] == 8


def test_the_code_of_a_generator_is_in_its_spec_however_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    specs = []
    for text in ("one = 1", "two = 2"):
        (tmp_path / "my_generator.py").write_text(text)
        specs.append([generator_spec(Model(), Generate(use=u)) for u in ("~/my_generator.py:G", "my_generator:G")])
    assert all(a["code"] and b["code"] and a != b for a, b in zip(*specs))
    assert registry.code_hash("~/my_generator.py:G") == specs[1][0]["code"] == specs[1][1]["code"]


def test_the_configuration_of_a_single_file_and_a_second_copy_of_an_adapter_are_in_the_spec(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    for name, text in (("one", "1"), ("two", "2"), ("copy", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    base, one, two, copy = (str(tmp_path / name) for name in ("model.safetensors", "one", "two", "copy"))

    def spec(**settings):
        return generator_spec(Model(base=base, **settings), Generate())

    assert spec(config=one) != spec(config=two) == spec(config=copy) != spec()
    assert spec(adapters={two: 0.5}) != spec(adapters={two: 0.5, copy: 0.5})


def test_what_another_command_made_until_it_freed_the_lock_is_neither_lost_nor_made_again(recipe, monkeypatch):
    """Between the checks and the lock another command may come and go: what counts is what is there under the lock."""
    run = Run(recipe=recipe)
    own = run.recipe.generate["own"]
    other, more = (replace(run.recipe, generate={"own": g}) for g in (replace(own, seed=7), replace(own, seed=7, n=6)))
    lock, racing = Store.lock, [other]

    def late(self, what, seconds=0):
        if what == "candidates/own" and racing:
            stage.run_generate(self, racing.pop(), "own", limit=1)
        return lock(self, what, seconds)

    monkeypatch.setattr(Store, "lock", late)
    with pytest.raises(FingerprintError, match="other settings"):
        run.generate(limit=1)
    assert len(table(run)) == 4
    racing.append(more)
    counts = Run(recipe=more).generate(limit=1)["own"]
    assert (counts["present"], counts["made"], len(table(run))) == (6, 0, 6)
