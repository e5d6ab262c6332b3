"""The names that other programs use for transformer layers.

kohya    sd-scripts (networks/lora_flux.py, lora_sd3.py at 48d368fa, 2026-02) and musubi-tuner: `lora_unet_` and the
         path, with underscores, in the original code of FLUX and SD 3. There, queries, keys and values are one layer.
         As in these programs, n fused layers get block-diagonal factors of n times the rank.
comfyui  diffusers' names, `transformer.PATH`, for the networks that ComfyUI's loader knows (comfy/lora.py and
         comfy/utils.py as of 2026).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from prefkit.errors import UsageError

#: networks for which ComfyUI's loader knows diffusers' layer names
COMFYUI = (
    "SD3Transformer2DModel",
    "FluxTransformer2DModel",
    "Flux2Transformer2DModel",
    "ChromaTransformer2DModel",
    "AuraFlowTransformer2DModel",
    "QwenImageTransformer2DModel",
    "ZImageTransformer2DModel",
)

# diffusers' block name -> (original block name, {original layer: the diffusers layers fused into it, in order})
Blocks = dict[str, tuple[str, dict[str, tuple[str, ...]]]]


def _qkv(attention: str) -> tuple[str, ...]:
    return f"{attention}.to_q", f"{attention}.to_k", f"{attention}.to_v"


_ADDED_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
_FLUX_ATTENTION = {
    "img_attn_qkv": _qkv("attn"),
    "txt_attn_qkv": _ADDED_QKV,
    "img_attn_proj": ("attn.to_out.0",),
    "txt_attn_proj": ("attn.to_add_out",),
}
KOHYA: dict[str, Blocks] = {
    "FluxTransformer2DModel": {
        "transformer_blocks": (
            "double_blocks",
            {
                **_FLUX_ATTENTION,
                "img_mlp_0": ("ff.net.0.proj",),
                "img_mlp_2": ("ff.net.2",),
                "txt_mlp_0": ("ff_context.net.0.proj",),
                "txt_mlp_2": ("ff_context.net.2",),
                "img_mod_lin": ("norm1.linear",),
                "txt_mod_lin": ("norm1_context.linear",),
            },
        ),
        "single_transformer_blocks": (
            "single_blocks",
            {"linear1": (*_qkv("attn"), "proj_mlp"), "linear2": ("proj_out",), "modulation_lin": ("norm.linear",)},
        ),
    },
    "Flux2Transformer2DModel": {
        "transformer_blocks": (
            "double_blocks",
            {
                **_FLUX_ATTENTION,
                "img_mlp_0": ("ff.linear_in",),
                "img_mlp_2": ("ff.linear_out",),
                "txt_mlp_0": ("ff_context.linear_in",),
                "txt_mlp_2": ("ff_context.linear_out",),
            },
        ),
        "single_transformer_blocks": (
            "single_blocks",
            {"linear1": ("attn.to_qkv_mlp_proj",), "linear2": ("attn.to_out",)},
        ),
    },
    "SD3Transformer2DModel": {
        "transformer_blocks": (
            "joint_blocks",
            {
                "x_block_attn_qkv": _qkv("attn"),
                "x_block_attn2_qkv": _qkv("attn2"),
                "context_block_attn_qkv": _ADDED_QKV,
                "x_block_attn_proj": ("attn.to_out.0",),
                "x_block_attn2_proj": ("attn2.to_out.0",),
                "context_block_attn_proj": ("attn.to_add_out",),
                "x_block_mlp_fc1": ("ff.net.0.proj",),
                "x_block_mlp_fc2": ("ff.net.2",),
                "context_block_mlp_fc1": ("ff_context.net.0.proj",),
                "context_block_mlp_fc2": ("ff_context.net.2",),
            },
        ),
    },
}
#: number of outputs of a diffusers layer inside a fused layer, divided by the network's width; default 1
HEIGHTS = {"proj_mlp": 4}


def kohya_layers(layers: Mapping[str, tuple[Any, Any]], network: str) -> dict[str, tuple[Any, Any]]:
    """Rename and fuse a transformer's layers for kohya. layers: diffusers path -> (down [r, in], up [out, r]).

    All factors must have the same rank r. A part of a fused layer that has no adapter gets zeros. Raises UsageError if
    kohya has no name for the network or a layer.
    """
    if network not in KOHYA:
        raise UsageError(
            f"export: kohya's names are known for UNets, FLUX and SD 3, but this adapter belongs to a {network}. Use "
            "--as comfyui, or --as diffusers."
        )
    factors: dict[str, dict[str, tuple[Any, Any]]] = {}
    fused: dict[str, tuple[str, ...]] = {}
    for path, pair in layers.items():
        match = re.fullmatch(r"(\w+)\.(\d+)\.(.+)", path)
        blocks, table = KOHYA[network].get(match[1] if match else "", ("", {}))
        layer = next((name for name, parts in table.items() if match and match[3] in parts), None)
        if match is None or layer is None:
            raise UsageError(
                f"export: kohya has no name for the layer {path} in a {network}. Use --as comfyui or --as diffusers, "
                "or train without that layer (lora.targets)."
            )
        name = f"lora_unet_{blocks}_{match[2]}_{layer}"
        factors.setdefault(name, {})[match[3]], fused[name] = pair, table[layer]
    return {name: _block_diagonal(parts, fused[name]) for name, parts in factors.items()}


def text_layers(layers: Mapping[str, tuple[Any, Any]], unet: bool) -> dict[str, tuple[Any, Any]]:
    """Rename the layers of text encoders for kohya. layers: text_encoder[_N].PATH -> factors; unet: of a UNet model."""
    numbered = not unet or any(module.startswith("text_encoder_2.") for module in layers)
    named = {}
    for module, pair in layers.items():
        component, _, path = module.partition(".")
        number = (component.removeprefix("text_encoder").removeprefix("_") or "1") if numbered else ""
        named[f"lora_te{number}_{path.replace('.', '_')}"] = pair
    return named


def _block_diagonal(factors: Mapping[str, tuple[Any, Any]], parts: tuple[str, ...]) -> tuple[Any, Any]:
    """Return a fused layer's factors, built from those of its parts: down is stacked, up is block-diagonal."""
    if len(parts) == 1:
        return factors[parts[0]]
    import torch

    part, (down, up) = next(iter(factors.items()))
    rank, unit = len(down), len(up) // HEIGHTS.get(part, 1)
    empty = torch.zeros_like(down)
    pairs = [factors.get(part, (empty, up.new_zeros(unit * HEIGHTS.get(part, 1), rank))) for part in parts]
    return torch.cat([down for down, _ in pairs]), torch.block_diag(*(up for _, up in pairs))
