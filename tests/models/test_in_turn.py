"""Parts that are loaded when they are called give what the whole pipeline gives, and are alone in memory."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch
from PIL import Image

from prefkit.errors import TrainingError
from prefkit.models import offload as sequential_offload
from prefkit.models.capture.call import capture
from prefkit.models.capture.conditions import capture_conditions
from prefkit.models.latents import encode
from prefkit.models.trees import dumps
from prefkit.testing import TINY_KINDS, wake_zeros

SIZE = {"height": 64, "width": 64}


def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", TINY_KINDS)
def test_wiring_conditions_and_latents_are_those_of_the_whole(load, kind):
    dtype = {"sdxl": "bf16"}.get(kind, "float32")
    whole, parts = load(kind, dtype=dtype), load(kind, dtype=dtype, sequential_offload=True)
    wiring = capture(whole, **SIZE)
    assert dataclasses.asdict(capture(parts, **SIZE)) == dataclasses.asdict(wiring)
    ours, theirs = (capture_conditions(pipe, wiring, ["a red cat"], **SIZE)[0] for pipe in (parts, whole))
    assert dumps(ours) == dumps(theirs)
    assert parts.sequential_offload.part == "text"  # the denoiser was stopped at, not called
    assert torch.equal(encode(parts, wiring, [image()]), encode(whole, wiring, [image()]))
    assert parts.sequential_offload.part == "vae"


def test_a_capture_reads_no_part_more_often_than_said(load):
    pipe = load("sd", sequential_offload=True)
    read, found = [], pipe.sequential_offload.load
    pipe.sequential_offload.load = lambda part, dtype: read.append(part) or found(part, dtype)
    capture(pipe, **SIZE)
    assert read == ["text", "denoiser", "text", "denoiser", "vae", "text"]


def test_modules_inside_a_part_answer_too_and_follow_its_dtype(load):
    pipe, whole = load("sd", sequential_offload=True), load("sd")
    states = torch.randn(1, 3, 32)
    expected = whole.text_encoder.final_layer_norm(states)
    assert torch.equal(pipe.text_encoder.final_layer_norm(states), expected)  # what clip_skip does
    pipe.text_encoder.bfloat16()
    assert pipe.text_encoder.final_layer_norm(states.bfloat16()).dtype == torch.bfloat16
    assert pipe.to("cpu").text_encoder.dtype == torch.bfloat16 and next(pipe.text_encoder.parameters()).is_meta
    pipe.vae.to(dtype=torch.bfloat16)
    assert (
        pipe.vae.decode(torch.randn(1, 4, 8, 8).bfloat16()).sample.dtype == torch.bfloat16
    )  # loaded after it was told


def test_statistics_that_are_read_and_not_called_are_real(tmp_path):
    import diffusers

    vae = diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    )
    wake_zeros(vae)
    vae.bn.running_mean.normal_()
    vae.save_pretrained(tmp_path / "vae")
    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "Flux2Pipeline", "vae": ["diffusers", "AutoencoderKLFlux2"], "text_encoder": [null, null]}'
    )
    turns = sequential_offload.SequentialOffload(lambda part, dtype: {"vae": vae.to(dtype)})
    stub = sequential_offload.meta_components(str(tmp_path), None, torch.float32, "cpu", turns)["vae"]
    assert turns.part is None
    assert torch.equal(stub.bn.running_mean, vae.bn.running_mean) and turns.part == "vae"


def test_one_part_only(load):
    pipe = load("sd", sequential_offload=True)
    with pytest.raises(sequential_offload.OtherPartNeeded), pipe.sequential_offload.only("text"):
        pipe.vae.decode(torch.randn(1, 4, 8, 8))
    assert pipe.sequential_offload.part is None
    pipe.vae.decode(torch.randn(1, 4, 8, 8))
    assert pipe.sequential_offload.part == "vae"


def test_prompts_are_remembered_by_what_is_in_them():
    class Pipe:
        calls = 0

        def encode_prompt(self, prompt, image=None, scale=1.0):
            self.calls += 1
            return torch.full((1, 2), len(prompt[0]) * scale), None

    pipe = Pipe()
    sequential_offload.cache_prompts(pipe)
    ask = functools.partial(pipe.encode_prompt, ["one"])
    first = ask(image=image())[0]
    first.zero_()  # pipelines may work in place
    assert ask(image=image())[0].eq(3).all() and pipe.calls == 1
    for other in ({"image": image().rotate(90)}, {"image": torch.ones(2)}, {"image": torch.zeros(2)}, {"scale": 2.0}):
        ask(**other)
    assert pipe.calls == 5


def test_an_adapter_of_the_text_encoder_is_refused_with_the_denoiser_alone(load, tmp_path):
    import safetensors.torch

    from prefkit.models.lora import adapters

    net = load("sd").unet
    adapters.add_lora(net, rank=2, alpha=2)
    path = adapters.export_adapter(net, "unet", tmp_path)
    state = safetensors.torch.load_file(path)
    for side, shape in (("A", (2, 32)), ("B", (32, 2))):
        state[f"text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_{side}.weight"] = torch.randn(shape)
    safetensors.torch.save_file(state, path)
    for options in ({"parts": {"denoiser"}}, {"sequential_offload": True}):
        with pytest.raises(TrainingError, match="also changes text_encoder"):
            pipe = load("sd", adapters={str(tmp_path): 1.0}, **options)
            capture(pipe, **SIZE)
