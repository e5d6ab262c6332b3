from __future__ import annotations

import functools
import time

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from prefkit import output
from prefkit.config import reader as recipe
from prefkit.errors import UsageError
from prefkit.models.sample import PromptCache, Sampler
from prefkit.testing import TINY_KINDS

SETTINGS = {"steps": 3, "guidance": 3.0, "height": 64, "width": 64}


def pixels(rows):
    return np.stack([np.asarray(row.image, dtype=np.int16) for row in rows])


def initial_noise(pipe, run):
    """The scheduler's very first sample in a run."""
    seen, own = [], type(pipe.scheduler).step

    def step(self, model_output, timestep, sample, *args, **kwargs):
        seen.append(sample.clone())
        return own(self, model_output, timestep, sample, *args, **kwargs)

    pipe.scheduler.__class__ = type("Seen", (type(pipe.scheduler),), {"step": step})
    run()
    return seen[0]


@pytest.mark.parametrize("kind", TINY_KINDS)
def test_a_candidate_does_not_depend_on_its_batch(load, kind):
    pipe = load(kind)
    sampler = Sampler(pipe, **SETTINGS)
    prompts, seeds = ["a cat", "a dog in a hat", "a cat"], [7, 8, 9]
    together = sampler.sample(prompts, seeds)
    alone = [sampler.sample([prompt], [seed])[0] for prompt, seed in zip(prompts, seeds, strict=True)]
    assert np.abs(pixels(together) - pixels(alone)).max() <= 1
    for a, b in zip(together, alone, strict=True):
        assert a.latents.device.type == "cpu" and not a.nsfw
        torch.testing.assert_close(a.latents, b.latents, rtol=1e-3, atol=1e-3)
    noise = initial_noise(pipe, lambda: sampler.sample(prompts, seeds))
    single = initial_noise(pipe, lambda: sampler.sample(prompts[1:2], seeds[1:2]))
    assert torch.equal(noise[1:2], single)
    assert np.abs(pixels(together[:1]) - pixels(together[2:])).max() > 10  # seeds matter


@pytest.mark.parametrize("kind", TINY_KINDS)
def test_same_images_as_the_bare_call(load, kind):
    pipe = load(kind)
    ours = Sampler(pipe, **SETTINGS).sample(["a cat", "a dog"], [1, 2])
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    bare = pipe(
        ["a cat", "a dog"], num_inference_steps=3, guidance_scale=3.0, height=64, width=64, generator=generators
    ).images
    assert np.abs(pixels(ours) - np.stack([np.asarray(image, dtype=np.int16) for image in bare])).max() <= 1


def test_a_prompt_is_encoded_once(load):
    pipe = load("sd")
    sampler = Sampler(pipe, **SETTINGS, negative_prompt="dull")
    count = []
    pipe.text_encoder.register_forward_hook(lambda *_: count.append(1))
    sampler.sample(["a cat", "a dog"], [1, 2])
    first = len(count)
    sampler.sample(["a cat", "a dog", "a cat"], [3, 4, 5])
    sampler.sample(["a dog"], [6])
    assert len(count) == first
    sampler.sample(["a bird"], [6])
    assert len(count) == first + 2  # the prompt and its negative
    sampler.forget()
    sampler.sample(["a bird"], [6])
    assert len(count) == first + 4


def test_negative_prompt_is_used(load):
    pipe = load("sd")
    plain = Sampler(pipe, **SETTINGS).sample(["a cat"], [1])
    steered = Sampler(pipe, **SETTINGS, negative_prompt="xylophone").sample(["a cat"], [1])
    generator = torch.Generator().manual_seed(1)
    bare = pipe("a cat", negative_prompt="xylophone", num_inference_steps=3, guidance_scale=3.0, generator=generator)
    assert np.array_equal(pixels(steered)[0], np.asarray(bare.images[0]))
    assert not np.array_equal(pixels(plain), pixels(steered))


def test_rows_that_do_not_stack_are_encoded_together():
    calls = []

    def encode(prompt, device=None):
        calls.append(list(prompt))
        longest = max(map(len, prompt))
        return torch.tensor([[ord(c) for c in p.ljust(longest)] for p in prompt]), None

    remembered = PromptCache(encode, limit=2)
    assert torch.equal(remembered(["ab", "cd"])[0], encode(["ab", "cd"])[0])
    assert torch.equal(remembered(prompt=["ab", "wxyz"])[0], encode(["ab", "wxyz"])[0])
    assert len(remembered.rows) == 2
    calls.clear()
    remembered(["ab"])
    assert calls == []


def test_the_pipeline_is_left_as_it_was(load):
    pipe = load("sd")
    Sampler(pipe, **SETTINGS).sample(["a cat"], [1])
    assert "encode_prompt" not in vars(pipe) and "step" not in vars(pipe.scheduler)


def test_arguments_that_a_pipeline_does_not_take_are_refused(load):
    with pytest.raises(UsageError, match="StableDiffusionPipeline takes no argument frames"):
        Sampler(load("sd"), **SETTINGS, extra_call={"frames": 3})


class Announced(StableDiffusionPipeline):
    @functools.wraps(StableDiffusionPipeline.__call__)
    def __call__(self, *args, clip_skip=1, **kwargs):
        self.given = clip_skip
        return super().__call__(*args, **kwargs)


def test_a_null_of_a_recipes_call_reaches_the_pipeline(load, tmp_path):
    """Its default may be another, as that of SanaPipeline's complex_human_instruction is; no wish leaves the default."""
    (tmp_path / "one.yaml").write_text("run: x\ngenerate: {own: {call: {clip_skip: null, negative_prompt: null}}}\n")
    (tmp_path / "two.yaml").write_text(recipe.dump(recipe.read(tmp_path / "one.yaml")))
    pipe = load("sd")
    pipe.__class__ = Announced
    for call, seen in ((recipe.read(tmp_path / "two.yaml").generate["own"].call, None), ({}, 1)):
        Sampler(pipe, **SETTINGS, extra_call=call).sample(["a cat"], [1])
        assert pipe.given == seen


class Suspicious(StableDiffusionPipeline):
    def run_safety_checker(self, image, device, dtype):
        return image, [True, False]


def test_the_safety_checkers_word_is_passed_on(load):
    pipe = load("sd")
    pipe.__class__ = Suspicious
    assert [row.nsfw for row in Sampler(pipe, **SETTINGS).sample(["a cat", "a dog"], [1, 2])] == [True, False]


@pytest.mark.parametrize(("seconds", "steps"), [(7.0, (5, 10)), (31.0, range(1, 13)), (2.0, ())])
def test_a_long_batch_reports_its_steps_at_most_every_30_seconds(load, monkeypatch, capsys, seconds, steps):
    pipe, clock = load("sd"), [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(output, "_last_sign", 0.0)

    def forward(*_):
        clock[0] += seconds

    pipe.unet.register_forward_hook(forward)
    sampler = Sampler(pipe, **SETTINGS | {"steps": 12})
    for batch in (1, 2):
        clock[0] += 1000.0  # between batches
        sampler.sample(["a cat", "a dog"], [1, 2])
        lines = capsys.readouterr().err.splitlines()
        assert lines == [f"sampling batch {batch}: denoising step {step} of 12" for step in steps]
