"""`model.long_prompts: chunks`: prompts beyond 77 tokens reach the denoiser of SD and SDXL."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prefkit.errors import UsageError
from prefkit.models.capture.call import capture
from prefkit.models.capture.conditions import capture_conditions
from prefkit.models.long_prompts import too_long
from prefkit.models.prompt_chunks import chunks
from prefkit.models.sample import Sampler

SHORT = "a hat"
LONG = " ".join(f"thing{i}" for i in range(20))  # of about six tokens each
TAILED = LONG.replace("thing19", "house")


def pixels(pipe, prompts):
    sampler = Sampler(pipe, steps=1, height=64, width=64, guidance=3.0, negative_prompt="blurred")
    return [np.asarray(each.image, int) for each in sampler.sample(prompts, list(range(len(prompts))))]


def test_a_text_is_cut_between_words(load):
    pipe = load("sd", long_prompts="chunks")
    parts = chunks(pipe, LONG)
    assert " ".join(parts) == LONG and len(parts) == 2
    assert all(len(pipe.tokenizer(part).input_ids) <= 77 for part in parts)
    assert chunks(pipe, SHORT, 2) == [SHORT, ""] and chunks(pipe, "") == [""]


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_chunks_are_encoded_by_the_pipeline_itself(load, kind):
    plain, pipe = load(kind), load(kind, long_prompts="chunks")
    assert too_long(plain, [LONG])[0] == 1 and too_long(pipe, [LONG]) == (0, 0)
    call = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    first, second = chunks(pipe, LONG)
    with torch.no_grad():
        positive, negative, *pooled = pipe.encode_prompt(LONG, negative_prompt="blurred", **call)
        one, bad, *alone = plain.encode_prompt(first, negative_prompt="blurred", **call)
        two, empty, *_ = plain.encode_prompt(second, negative_prompt="", **call)
    assert torch.equal(positive, torch.cat([one, two], 1)) and torch.equal(negative, torch.cat([bad, empty], 1))
    assert all(map(torch.equal, pooled, alone)) and len(pooled) == (2 if kind == "sdxl" else 0)


def test_images_follow_the_end_of_a_long_prompt_and_not_their_neighbours(load):
    plain, pipe = load("sd"), load("sd", long_prompts="chunks")
    cut, whole = pixels(plain, [SHORT, LONG, TAILED]), pixels(pipe, [SHORT, LONG, TAILED])
    assert abs(cut[0] - whole[0]).max() <= 1  # batches of other sizes may round differently
    tails = [pixels(each, [LONG])[0] - pixels(each, [TAILED])[0] for each in (plain, pipe)]
    assert not tails[0].any() and tails[1].any()


def test_training_sees_the_same_conditions(load):
    pipe = load("sd", long_prompts="chunks")
    wiring = capture(pipe, height=64, width=64)
    long = capture_conditions(pipe, wiring, [LONG], height=64, width=64, call={})[0]
    short = capture_conditions(pipe, wiring, [SHORT], height=64, width=64, call={})[0]
    assert long["encoder_hidden_states"].shape[-2] == 154 and short["encoder_hidden_states"].shape[-2] == 77


def test_other_pipelines_are_refused(load):
    with pytest.raises(UsageError, match="model.long_prompts is chunks, but FluxPipeline is not a Stable Diffusion"):
        load("flux", long_prompts="chunks")
