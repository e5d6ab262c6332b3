"""SDXL and SD 3 in one file under their first names: every weight read, and the pipeline that it was made from."""

from __future__ import annotations

import re
import socket

import diffusers
import pytest
import safetensors.torch
import torch
import transformers

from prefkit.errors import UsageError
from prefkit.models.load.pipeline import load_pipeline
from prefkit.testing import _sd3, _sdxl
from tests.models.editing import awake
from tests.models.original_names import sd3_state
from tests.models.test_single_file import refuse, unet_state, vae_state

WIDE = 48  # of the second text encoder: readers tell the two apart by width
OPEN_CLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc",
             "mlp.fc2": "mlp.c_proj"}  # fmt: skip
OPEN_CLIP_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight", "final_layer_norm.bias": "ln_final.bias",
}  # fmt: skip
LABEL = {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}


def bare(text):
    """A CLIP text encoder's weights by name, whether or not transformers keeps them under text_model."""
    return {key.removeprefix("text_model."): value for key, value in text.state_dict().items()}


def open_clip_state(text):
    state, found = bare(text), {}
    found["text_projection"] = state.pop("text_projection.weight").T
    for key in list(state):
        layer = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", key)
        if layer is None:
            found[OPEN_CLIP_ENDS[key]] = state.pop(key)
        elif key in state:
            number, path, leaf = layer.groups()
            block = f"transformer.resblocks.{number}"
            if not re.search("[qkv]_proj", path):
                found[f"{block}.{OPEN_CLIP[path]}.{leaf}"] = state.pop(key)
            else:
                parts = [state.pop(f"encoder.layers.{number}.self_attn.{side}_proj.{leaf}") for side in "qkv"]
                found[f"{block}.attn.in_proj_{leaf}"] = torch.cat(parts)
    return found


def wider(text):
    changes = {"hidden_size": WIDE, "projection_dim": WIDE}
    return awake(type(text)(transformers.CLIPTextConfig(**{**text.config.to_dict(), **changes})))


def sdxl():
    parts = dict(_sdxl().components)
    parts["text_encoder_2"] = wider(parts["text_encoder_2"])
    sizes = {"cross_attention_dim": 32 + WIDE, "projection_class_embeddings_input_dim": WIDE + 6 * 8}
    parts["unet"] = awake(diffusers.UNet2DConditionModel.from_config({**parts["unet"].config, **sizes}))
    return diffusers.StableDiffusionXLPipeline(**parts)


class Without:
    """A UNet without the layers that are renamed apart."""

    def __init__(self, unet, start):
        self.config, self.start, self.whole = unet.config, start, unet.state_dict()

    def state_dict(self):
        return {key: value for key, value in self.whole.items() if not key.startswith(self.start)}


def sdxl_file(pipe):
    unet = unet_state(Without(pipe.unet, "add_embedding"))
    for key, value in pipe.unet.state_dict().items():
        module, _, leaf = key.rpartition(".")
        if module in LABEL:
            unet[f"{LABEL[module]}.{leaf}"] = value
    text = {f"text_model.{key}": value for key, value in bare(pipe.text_encoder).items()}
    return {"model.diffusion_model.": unet, "first_stage_model.": vae_state(pipe.vae),
            "conditioner.embedders.0.transformer.": text,
            "conditioner.embedders.1.model.": open_clip_state(pipe.text_encoder_2)}  # fmt: skip


def sd3():
    parts = dict(_sd3().components)
    parts["text_encoder_2"] = wider(parts["text_encoder_2"])
    parts["text_encoder_3"].eval()
    parts["text_encoder"].text_projection.weight.data = torch.eye(32)  # as in the original file, which holds none
    config = {**parts["transformer"].config, "pooled_projection_dim": 32 + WIDE, "joint_attention_dim": 96}
    parts["transformer"] = awake(diffusers.SD3Transformer2DModel.from_config(config))
    t5 = transformers.T5Config(**{**parts["text_encoder_3"].config.to_dict(), "d_model": 96})
    parts["text_encoder_3"] = transformers.T5EncoderModel(t5).eval()
    return diffusers.StableDiffusion3Pipeline(**parts)


def sd3_file(pipe):
    clip = {f"text_model.{k}": v for k, v in bare(pipe.text_encoder).items() if k != "text_projection.weight"}
    wide = dict(pipe.text_encoder_2.state_dict())
    return {"model.diffusion_model.": sd3_state(pipe.transformer), "first_stage_model.": vae_state(pipe.vae),
            "text_encoders.clip_l.transformer.": clip, "text_encoders.clip_g.transformer.": wide,
            "text_encoders.t5xxl.transformer.": dict(pipe.text_encoder_3.state_dict())}  # fmt: skip


CASES = {sdxl: sdxl_file, sd3: sd3_file}


@pytest.mark.parametrize("build", CASES, ids=lambda f: f.__name__)
def test_it_is_the_pipeline_it_was_made_from(build, tmp_path, monkeypatch):
    torch.manual_seed(0)
    pipe = build()
    pipe.save_pretrained(tmp_path / "folder")
    pipe = load_pipeline(tmp_path / "folder")
    parts = CASES[build](pipe)
    state = {
        prefix + name: value.contiguous().clone() for prefix, part in parts.items() for name, value in part.items()
    }
    safetensors.torch.save_file(state, tmp_path / "x.safetensors")
    asked = []
    monkeypatch.setattr(socket.socket, "connect", lambda own, address: asked.append(address) or refuse())
    single = load_pipeline(tmp_path / "x.safetensors", config=str(tmp_path / "folder"))
    assert not asked and type(single) is type(pipe)
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            mine, theirs = getattr(single, name).state_dict(), part.state_dict()
            assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine), name
            assert not getattr(single, name).training, name
    images = [
        p("a red cat", num_inference_steps=2, height=64, width=64, generator=torch.Generator().manual_seed(0),
          output_type="pt").images
        for p in (single, pipe)
    ]  # fmt: skip
    torch.testing.assert_close(*images, rtol=0, atol=2e-3)  # half a level: weights lie otherwise in memory


@pytest.mark.parametrize("lacks", ["text_encoders.t5xxl.", "text_encoders.", "first_stage_model."])
def test_what_the_file_lacks_comes_from_the_folder_of_its_configuration(lacks, tmp_path):
    torch.manual_seed(0)
    pipe = sd3()
    pipe.save_pretrained(tmp_path / "folder")
    state = {prefix + name: value for prefix, part in sd3_file(pipe).items() for name, value in part.items()}
    state = {name: value.contiguous().clone() for name, value in state.items() if not name.startswith(lacks)}
    safetensors.torch.save_file(state, tmp_path / "x.safetensors")
    single = load_pipeline(tmp_path / "x.safetensors", config=str(tmp_path / "folder"))
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            mine, theirs = getattr(single, name).state_dict(), part.state_dict()
            assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine), name
    for weights in (tmp_path / "folder").glob("*/*.safetensors"):
        weights.unlink()
    with pytest.raises(UsageError, match="missing parts come from the Hub, or from a pipeline folder"):
        load_pipeline(tmp_path / "x.safetensors", config=str(tmp_path / "folder"))
