"""SD with DiFashion's conditions on a tiny random instance: its formula, null conditions, batches, and prefkit's stages."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from prefkit.errors import UsageError
from prefkit.models.capture.call import capture
from prefkit.models.load.pipeline import load_pipeline
from prefkit.testing import tiny_pipeline, wake_zeros
from tests.models.editing import picture

ROOT = Path(__file__).parents[2]
FILE = ROOT / "pipelines/fashion/difashion_pipeline.py"
ETA, SCALES = 0.1, (12.0, 5.0, 4.0)  # category, mutual, history
OUTFIT, HISTORY = [picture(i) for i in range(3)], [picture(i) for i in (3, 4)]
WHITE = Image.new("RGB", (64, 64), "white")


def custom(base):
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(base, custom_pipeline=str(FILE), trust_remote_code=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Stable Diffusion, tiny, without the conditions."""
    return tiny_pipeline("sd", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory):
    """With the conditions, all of whose weights are random."""
    pipe = custom(base)
    torch.manual_seed(0)
    wake_zeros(pipe.mutual_encoder, 0.2)
    pipe.unet.conv_in.weight.data[:, 8:].normal_(std=0.2)
    written = tmp_path_factory.mktemp("difashion")
    pipe.save_pretrained(written)
    return written


@pytest.fixture
def pipe(folder):
    made = load_pipeline(folder, trust_remote_code=True)
    made.set_progress_bar_config(disable=True)
    return made


def run(pipe, prompts=("a hat",), seeds=(1,), steps=2, **call):
    """Return the final latents [B, 4, 8, 8]."""
    noise = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(list(prompts), generator=noise, num_inference_steps=steps, output_type="latent", **call).images


def first_noise(pipe, **call):
    """Return the scheduler's (sample, time, model output) at the first step."""
    seen, step = [], pipe.scheduler.step

    def listen(noise, time, sample, **kwargs):
        seen.append((sample, time, noise))
        return step(noise, time, sample, **kwargs)

    pipe.scheduler.step = listen
    run(pipe, **call)
    del pipe.scheduler.step
    return seen[0]


def as_published(pipe, x, time):
    """The guided noise by DiFashion's own layout: an 8-channel conv_in on [(1 - eta) x_t + eta m, history], in turn."""
    net = copy.deepcopy(pipe.unet)
    weight = net.conv_in.weight.data
    eight = torch.cat([weight[:, :4] / (1 - ETA), weight[:, 8:]], 1)
    torch.testing.assert_close(weight[:, 4:8], ETA * weight[:, :4] / (1 - ETA), rtol=1e-6, atol=1e-9)
    net.conv_in = torch.nn.Conv2d(8, len(weight), 3, padding=1).double()
    net.conv_in.weight.data, net.conv_in.bias = eight, pipe.unet.conv_in.bias

    def latent(image):
        pixels = torch.tensor(list(image.get_flattened_data()), dtype=torch.float64).view(64, 64, 3).permute(2, 0, 1)
        return pipe.vae.encode(pixels[None] / 127.5 - 1).latent_dist.mean * pipe.vae.config.scaling_factor

    white = latent(WHITE)
    mean = {name: sum(map(latent, images)) / len(images) for name, images in (("m", OUTFIT), ("h", HISTORY))}
    one, _, _, four, _ = pipe.mutual_encoder.layers

    def encoded(z):
        return torch.tanh(four(torch.nn.functional.leaky_relu(one(z.flatten()), 0.01))).view_as(z)

    def noise(text, outfit, history):
        tokens = pipe.tokenizer(
            text, padding="max_length", max_length=pipe.tokenizer.model_max_length, return_tensors="pt"
        )
        states = pipe.text_encoder(tokens.input_ids)[0]
        return net(torch.cat([(1 - ETA) * x + ETA * encoded(outfit), history], 1), time, states).sample

    e_0, e_c = noise("", white, white), noise("a hat", white, white)
    e_cm, e_all = noise("a hat", mean["m"], white), noise("a hat", mean["m"], mean["h"])
    category, mutual, history = SCALES
    return e_0 + history * (e_all - e_cm) + mutual * (e_cm - e_c) + category * (e_c - e_0)


@torch.no_grad()
def test_the_guided_noise_is_difashions(pipe):
    pipe.to(torch.float64)
    x, time, ours = first_noise(pipe, outfit=OUTFIT, history=HISTORY)  # the default scales are as published
    theirs = as_published(pipe, x, time)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)  # pixels and saved weights are float32
    weaker = first_noise(pipe, outfit=OUTFIT, history=HISTORY, mutual_guidance_scale=4.9)[2]
    assert (weaker - theirs).abs().max() > 1e-4


def test_no_images_are_a_white_one_and_no_guidance_is_all_conditions(pipe):
    nothing = run(pipe)
    assert torch.equal(nothing, run(pipe, outfit=[], history=[WHITE]))
    own = run(pipe, outfit=OUTFIT, history=HISTORY)
    for other in (
        nothing,
        run(pipe, outfit=OUTFIT),
        run(pipe, history=HISTORY),
        run(pipe, outfit=HISTORY, history=OUTFIT),
    ):
        assert (own - other).abs().max() > 1e-4
    call = {"outfit": OUTFIT, "history": HISTORY}
    alone = first_noise(pipe, guidance_scale=1.0, **call)[2]
    telescoped = first_noise(
        pipe, guidance_scale=1.0 + 1e-7, mutual_guidance_scale=1, history_guidance_scale=1, **call
    )[2]
    torch.testing.assert_close(alone, telescoped, rtol=1e-4, atol=1e-5)


def test_a_batch_is_its_singles(pipe):
    lists = {"outfit": [OUTFIT, HISTORY], "history": [[], OUTFIT[:1]]}
    both = run(pipe, ("a hat", "a bag"), (1, 2), **lists)
    for i, prompt in enumerate(("a hat", "a bag")):
        single = run(pipe, (prompt,), (i + 1,), outfit=lists["outfit"][i], history=lists["history"][i])
        torch.testing.assert_close(both[i : i + 1], single, rtol=1e-3, atol=1e-4)
    shared = run(pipe, ("a hat",), (1, 2), num_images_per_prompt=2, outfit=OUTFIT)
    torch.testing.assert_close(shared, run(pipe, ("a hat", "a hat"), (1, 2), outfit=[OUTFIT, OUTFIT]))


def test_a_fresh_instance_ignores_the_images_and_wrong_ones_are_refused(base, pipe):
    fresh = custom(base)
    fresh.set_progress_bar_config(disable=True)
    assert torch.equal(run(fresh), run(fresh, outfit=OUTFIT, history=HISTORY))
    with pytest.raises(ValueError, match="outfit has 1 lists of images for 2 prompts"):
        run(pipe, ("a hat", "a bag"), (1, 2), outfit=[OUTFIT])
    with pytest.raises(ValueError, match="is for 256 latents, but the image has 512"):
        run(pipe, height=128)


def test_a_saved_folder_holds_its_code_and_is_proven(folder, pipe):
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == ["difashion_pipeline", "DiFashionPipeline"]
    torch.testing.assert_close(run(custom(folder), outfit=OUTFIT), run(pipe, outfit=OUTFIT))
    with pytest.raises(UsageError, match="trust_remote_code"):
        load_pipeline(folder)
    wiring = capture(pipe, call={"outfit": OUTFIT, "history": HISTORY})
    assert wiring.input == "extra_channels" and wiring.no_guidance == {"guidance_scale": 1.0}


def test_the_recipe_generates_and_trains(fashion, folder, tmp_path, monkeypatch, cli):
    monkeypatch.chdir(tmp_path)
    fashion.world.write_world(tmp_path / "fashion", 2, 2, 0)
    text = (ROOT / "pipelines/fashion/sd2_difashion.yaml").read_text()
    for real, tiny in {
        "base: difashion": f"base: {folder}",
        "n: 7, steps: 50": "n: 4, steps: 2",
        "bfloat16, batch_size: 7": "float32, batch_size: 8",
        "{use: mllm, model: Qwen/Qwen2.5-VL-7B-Instruct}": "{use: jpeg}",
        "{use: outfit_compat, model: fitted/outfit_compat, images: runs/sd2_difashion}": "{use: jpeg}",
        "precision: bf16": 'precision: "no"',
        "steps: 1000": "steps: 2",
    }.items():
        assert real in text
        text = text.replace(real, tiny)
    text = re.sub(r"personal:\s+\{.*\}", "personal: {use: jpeg}", text)  # test_experts.py has the real one
    (tmp_path / "tiny.yaml").write_text(text)
    for verb in ("generate", "score", "pair", "train"):
        code, _, error = cli(verb, "-r", tmp_path / "tiny.yaml")
        assert code == 0, error
    assert list((tmp_path / "runs/sd2_difashion/train/dpo").rglob("*.safetensors"))
