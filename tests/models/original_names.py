"""A diffusers SD 3 transformer's weights under the names of the original code, where q, k and v are one layer."""

from __future__ import annotations

import re

import torch

FUSED = (("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj"))
SD3_ENDS = {
    "pos_embed.proj": "x_embedder.proj", "context_embedder": "context_embedder", "proj_out": "final_layer.linear",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2", "norm_out.linear": "final_layer.adaLN_modulation.1",
}  # fmt: skip
SD3_BLOCK = {
    "attn.to_out.0": "x_block.attn.proj", "attn2.to_out.0": "x_block.attn2.proj",
    "attn.to_add_out": "context_block.attn.proj", "ff.net.0.proj": "x_block.mlp.fc1", "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1", "ff_context.net.2": "context_block.mlp.fc2",
    "norm1.linear": "x_block.adaLN_modulation.1", "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.norm_q": "x_block.attn.ln_q", "attn.norm_k": "x_block.attn.ln_k", "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k", "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
}  # fmt: skip


def swapped(tensor):
    """Scale and shift stand the other way round in the original code."""
    return torch.cat(tensor.chunk(2)[::-1])


def sd3_state(net):
    state, last = dict(net.state_dict()), net.config.num_layers - 1
    found = {"pos_embed": state.pop("pos_embed.pos_embed")}
    for key in list(state):
        if key not in state:  # fused already
            continue
        module, leaf = key.rsplit(".", 1)
        block = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", module)
        if block is None:
            value = state.pop(key)
            found[f"{SD3_ENDS[module]}.{leaf}"] = swapped(value) if module == "norm_out.linear" else value
            continue
        number, path = block.groups()
        attention, _, layer = path.rpartition(".")
        together = next((names for names in FUSED if layer in names), None)
        if together is None:
            value = state.pop(key)
            turned = path == "norm1_context.linear" and int(number) == last
            found[f"joint_blocks.{number}.{SD3_BLOCK[path]}.{leaf}"] = swapped(value) if turned else value
            continue
        side = f"x_block.{attention}" if together is FUSED[0] else "context_block.attn"
        values = [state.pop(f"transformer_blocks.{number}.{attention}.{name}.{leaf}") for name in together]
        found[f"joint_blocks.{number}.{side}.qkv.{leaf}"] = torch.cat(values)
    return found
