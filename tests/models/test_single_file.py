"""A checkpoint in the layout of the original Stable Diffusion code (one file, ldm names) is the pipeline it was made from."""

from __future__ import annotations

import re
import socket

import pytest
import safetensors.torch
import torch

from prefkit.models.load.pipeline import load_pipeline
from prefkit.testing import tiny_pipeline

UNET_RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
               "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
UNET_ENDS = {"conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0",
             "time_embedding.linear_2": "time_embed.2", "conv_norm_out": "out.0", "conv_out": "out.2"}  # fmt: skip
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_name(key, layers):
    """diffusers -> ldm, where blocks are counted through: `layers` resnets and a sampler (or the last resnet) a level."""
    module, leaf = key.rsplit(".", 1)
    if module in UNET_ENDS:
        return f"{UNET_ENDS[module]}.{leaf}"
    kind, *where, rest = re.fullmatch(r"(down|up|mid)_blocks?\.(?:(\d+)\.)?(\w+)\.(\d+)\.(.+)", module).groups()
    level, part, place = int(where[0] or 0), where[1], int(where[2])
    if part == "resnets":
        rest = UNET_RESNET[rest]
    if kind == "mid":
        return f"middle_block.{2 * place if part == 'resnets' else 2 * place + 1}.{rest}.{leaf}"
    if kind == "down":
        if part == "downsamplers":
            return f"input_blocks.{(level + 1) * (layers + 1)}.0.op.{leaf}"
        return f"input_blocks.{1 + level * (layers + 1) + place}.{int(part == 'attentions')}.{rest}.{leaf}"
    if part == "upsamplers":  # after the last resnet of its level, and its attention where there is one
        return f"output_blocks.{level * (layers + 1) + layers}.UP.conv.{leaf}"
    return f"output_blocks.{level * (layers + 1) + place}.{int(part == 'attentions')}.{rest}.{leaf}"


def unet_state(unet):
    layers = unet.config.layers_per_block
    found = {unet_name(key, layers): value for key, value in unet.state_dict().items()}
    attended = {name.split(".UP")[0] for name in found if ".UP." in name} & {
        ".".join(name.split(".")[:2]) for name in found if re.match(r"output_blocks\.\d+\.1\.", name)
    }
    return {
        name.replace(".UP.", ".2." if name.split(".UP")[0] in attended else ".1."): value
        for name, value in found.items()
    }


def vae_name(key, levels):
    module, leaf = key.rsplit(".", 1)
    module = module.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    module = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", module)
    if "mid_block.attentions.0." in module:
        before, after = module.split("mid_block.attentions.0.")
        module = f"{before}mid.attn_1.{VAE_ATTENTION[after]}"
    module = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", module)
    module = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", module)
    module = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", module)
    module = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", module)
    return f"{module}.{leaf}"


def vae_state(vae):
    levels = len(vae.config.block_out_channels)
    found = {vae_name(key, levels): value for key, value in vae.state_dict().items()}
    linear = re.compile(r"attn_1\.(q|k|v|proj_out)\.weight")  # 1 x 1 convolutions there
    return {name: value[:, :, None, None] if linear.search(name) else value for name, value in found.items()}


def save_original(pipe, path):
    bare = {key.removeprefix("text_model."): value for key, value in pipe.text_encoder.state_dict().items()}
    text = {f"text_model.{key}": value for key, value in bare.items()}
    parts = {"model.diffusion_model.": unet_state(pipe.unet), "first_stage_model.": vae_state(pipe.vae),
             "cond_stage_model.transformer.": text}  # fmt: skip
    state = {
        prefix + name: value.contiguous().clone() for prefix, part in parts.items() for name, value in part.items()
    }
    safetensors.torch.save_file(state, path)
    return state


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    root = tmp_path_factory.mktemp("single")
    folder = tiny_pipeline("sd", root / "folder")
    pipe = load_pipeline(folder)
    return folder, pipe, root / "x.safetensors", save_original(pipe, root / "x.safetensors")


def refuse():
    raise OSError("no network in this test")


def sample(pipe):
    generator = torch.Generator().manual_seed(0)
    return pipe("a red cat", num_inference_steps=2, height=64, width=64, generator=generator, output_type="pt").images


def test_the_file_holds_every_weight_under_its_first_name(both):
    _, pipe, _, state = both
    parts = (pipe.unet, pipe.vae, pipe.text_encoder)
    assert len(state) == sum(len(part.state_dict()) for part in parts)
    for known in ("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
                  "first_stage_model.decoder.up.0.block.0.conv1.weight", "first_stage_model.quant_conv.weight",
                  "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight"):  # fmt: skip
        assert known in state


def test_it_is_the_pipeline_it_was_made_from(both, monkeypatch):
    folder, pipe, file, _ = both
    asked = []
    monkeypatch.setattr(socket.socket, "connect", lambda own, address: asked.append(address) or refuse())
    single = load_pipeline(file, config=str(folder))
    assert not asked
    for name in ("unet", "vae", "text_encoder"):
        mine, theirs = getattr(single, name).state_dict(), getattr(pipe, name).state_dict()
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine), name
    assert single.scheduler.config.prediction_type == pipe.scheduler.config.prediction_type
    assert torch.equal(sample(single), sample(pipe))
