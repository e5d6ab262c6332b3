from __future__ import annotations

import os
import shutil

import pytest
import torch

from prefkit.errors import UsageError
from prefkit.models.load.pipeline import denoiser_name, load_pipeline
from prefkit.models.load.revision import weights_revision


def test_dtype_scheduler_and_denoiser(load):
    pipe = load("sd", dtype="bf16", scheduler="EulerDiscreteScheduler")
    assert pipe.unet.dtype == pipe.vae.dtype == torch.bfloat16
    assert type(pipe.scheduler).__name__ == "EulerDiscreteScheduler"
    assert pipe.scheduler.config.beta_schedule == "scaled_linear"
    assert denoiser_name(pipe) == "unet" and denoiser_name(load("flux")) == "transformer"


def test_a_scheduler_swapped_in_never_clips_latents(load, tmp_path):
    pipe = load("sdxl")
    pipe.scheduler = type(pipe.scheduler)(beta_schedule="scaled_linear")  # a config that does not mention clip_sample
    pipe.save_pretrained(tmp_path)
    assert load_pipeline(tmp_path, scheduler="DDIMScheduler").scheduler.config.clip_sample is False


def test_parts_left_out_take_no_memory(load):
    pipe = load("sd3", parts={"denoiser"})
    assert pipe.text_encoder is pipe.text_encoder_2 is pipe.text_encoder_3 is None
    assert all(p.is_meta for p in pipe.vae.parameters()) and not any(p.is_meta for p in pipe.transformer.parameters())
    pipe = load("sdxl", parts={"vae"})
    assert all(p.is_meta for p in pipe.unet.parameters()) and not any(p.is_meta for p in pipe.vae.parameters())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"base": "{tmp}"}, "not a diffusers pipeline"),
        ({"base": "{tmp}/nowhere"}, "does not exist"),
        ({"base": "{tmp}/nowhere.safetensors"}, "does not exist"),
        ({"base": "{tmp}/notes.txt"}, "neither a folder nor"),
        ({"base": "{sd}", "dtype": "float12"}, "float12"),
        ({"base": "{sd}", "scheduler": "Nonsense"}, "Nonsense"),
        ({"base": "{sd}", "scheduler": "UNet2DConditionModel"}, "UNet2DConditionModel"),
        ({"base": "{sd}", "parts": {"text", "wheels"}}, "wheels"),
        ({"base": "{sd}", "adapters": {"{tmp}/nowhere": 1.0}}, "nowhere"),
        ({"base": "{sd}", "adapters": {"{sd}": 1.0}}, "adapter"),
        ({"base": "{tmp}/broken.safetensors"}, "broken.safetensors"),
        ({"base": "{tmp}/hollow"}, "hollow"),
    ],
)
def test_what_cannot_be_loaded_is_said_clearly(tiny, tmp_path, monkeypatch, options, words):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "broken.safetensors").write_bytes(b"12345678901234567890")
    (tmp_path / "hollow").mkdir()
    (tmp_path / "hollow" / "model_index.json").write_text('{"_class_name": "NoSuchPipeline"}')

    def fill(value):
        return value.format(tmp=tmp_path, sd=tiny["sd"]) if isinstance(value, str) else value

    options = {key: fill(value) for key, value in options.items()}
    if "adapters" in options:
        options["adapters"] = {fill(key): value for key, value in options["adapters"].items()}
    with pytest.raises(UsageError, match=words):
        load_pipeline(**options)


def test_revision_is_the_content(tiny, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(tiny["sd"], tmp_path / name)
    first = weights_revision(tmp_path / "a")
    assert first == weights_revision(tmp_path / "b") == weights_revision(tmp_path / "a")
    (tmp_path / "b" / "README.md").write_text("words")
    assert weights_revision(tmp_path / "b") == first
    file = tmp_path / "b" / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    os.utime(file, ns=(1, 1))
    assert weights_revision(tmp_path / "b") != first
    assert weights_revision(tiny["sd-v"]) != first
    assert weights_revision(file) != weights_revision(tmp_path / "a" / "vae" / file.name)


def test_revision_of_what_is_not_there(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no model files"):
        weights_revision(tmp_path / "empty")
    with pytest.raises(UsageError, match="Hub id"):
        weights_revision(tmp_path / "nowhere")


def test_a_hub_that_cannot_be_reached_is_an_error_of_ours(monkeypatch):
    import huggingface_hub

    class TransportError(Exception):
        """The Hub's client changes its transport, and with it the errors, between releases."""

    def unreachable(*_, **__):
        raise TransportError("name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    with pytest.raises(UsageError, match=r"owner/name does not exist as a path.*did not answer.*TransportError"):
        weights_revision("owner/name")


def test_a_commit_of_the_hub_is_the_revision(monkeypatch):
    import types

    import huggingface_hub

    asked = []

    def info(self, repository, revision=None):
        asked.append((repository, revision))
        return types.SimpleNamespace(sha="0123abcd")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)
    assert weights_revision("owner/other", "v1") == "0123abcd" and asked == [("owner/other", "v1")]
