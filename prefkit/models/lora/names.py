"""How other programs call the layers of a transformer, and how they fuse what diffusers keeps apart.

kohya    sd-scripts (networks/lora_flux.py, lora_sd3.py at 48d368fa, 2026-02) and musubi-tuner name a layer after the
         original code of FLUX and SD 3, where queries, keys and values are one layer: `lora_unet_` and the path with
         underscores. As they write split layers: low-rank factors of the fused one, block-diagonal, of n times the rank.
comfyui  reads diffusers' own names, `transformer.PATH`, of the networks for which its loader has a map
         (comfy/lora.py and comfy/utils.py as of 2026).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from prefkit.errors import UsageError

#: networks whose layers ComfyUI's loader finds under diffusers' names
COMFYUI = (
    "SD3Transformer2DModel",
    "FluxTransformer2DModel",
    "Flux2Transformer2DModel",
    "ChromaTransformer2DModel",
    "AuraFlowTransformer2DModel",
    "QwenImageTransformer2DModel",
    "ZImageTransformer2DModel",
)

# Layer in a block -> (layer of the original code, its place there). Layers with the same name are fused, in this order;
# a place's height is in units of the network's width.
_QKV, _LINEAR1 = (1, 1, 1), (1, 1, 1, 4)
Place = tuple[str, int, tuple[int, ...]]


def _whole(name: str) -> Place:
    return name, 0, (1,)


def _fused(layers: tuple[str, ...], name: str, heights: tuple[int, ...]) -> dict[str, Place]:
    return {layer: (name, i, heights) for i, layer in enumerate(layers)}


_TO, _ADD = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")


def _attention(name: str) -> tuple[str, ...]:
    return tuple(f"{name}.{layer}" for layer in _TO)


_ADDED = tuple(f"attn.{layer}" for layer in _ADD)

_FLUX_DOUBLE = {
    **_fused(_attention("attn"), "img_attn_qkv", _QKV),
    **_fused(_ADDED, "txt_attn_qkv", _QKV),
    "attn.to_out.0": _whole("img_attn_proj"),
    "attn.to_add_out": _whole("txt_attn_proj"),
}
_FLUX_1 = {
    "transformer_blocks": (
        "double_blocks",
        {
            **_FLUX_DOUBLE,
            "ff.net.0.proj": _whole("img_mlp_0"),
            "ff.net.2": _whole("img_mlp_2"),
            "ff_context.net.0.proj": _whole("txt_mlp_0"),
            "ff_context.net.2": _whole("txt_mlp_2"),
            "norm1.linear": _whole("img_mod_lin"),
            "norm1_context.linear": _whole("txt_mod_lin"),
        },
    ),
    "single_transformer_blocks": (
        "single_blocks",
        {
            **_fused((*_attention("attn"), "proj_mlp"), "linear1", _LINEAR1),
            "proj_out": _whole("linear2"),
            "norm.linear": _whole("modulation_lin"),
        },
    ),
}
_FLUX_2 = {
    "transformer_blocks": (
        "double_blocks",
        {
            **_FLUX_DOUBLE,
            "ff.linear_in": _whole("img_mlp_0"),
            "ff.linear_out": _whole("img_mlp_2"),
            "ff_context.linear_in": _whole("txt_mlp_0"),
            "ff_context.linear_out": _whole("txt_mlp_2"),
        },
    ),
    "single_transformer_blocks": (
        "single_blocks",
        {"attn.to_qkv_mlp_proj": _whole("linear1"), "attn.to_out": _whole("linear2")},
    ),
}
_SD3 = {
    "transformer_blocks": (
        "joint_blocks",
        {
            **_fused(_attention("attn"), "x_block_attn_qkv", _QKV),
            **_fused(_attention("attn2"), "x_block_attn2_qkv", _QKV),
            **_fused(_ADDED, "context_block_attn_qkv", _QKV),
            "attn.to_out.0": _whole("x_block_attn_proj"),
            "attn2.to_out.0": _whole("x_block_attn2_proj"),
            "attn.to_add_out": _whole("context_block_attn_proj"),
            "ff.net.0.proj": _whole("x_block_mlp_fc1"),
            "ff.net.2": _whole("x_block_mlp_fc2"),
            "ff_context.net.0.proj": _whole("context_block_mlp_fc1"),
            "ff_context.net.2": _whole("context_block_mlp_fc2"),
        },
    ),
}
KOHYA: dict[str, dict[str, tuple[str, dict[str, Place]]]] = {
    "FluxTransformer2DModel": _FLUX_1,
    "Flux2Transformer2DModel": _FLUX_2,
    "SD3Transformer2DModel": _SD3,
}


def kohya_layers(layers: Mapping[str, tuple[Any, Any]], network: str) -> dict[str, tuple[Any, Any]]:
    """Path in the transformer -> (down [r, in], up [out, r]) as kohya's name -> the same of that program's layer.

    All of one rank. Parts of a fused layer that carry no adapter get zeros. Raises UsageError for a network or a layer
    that has no such name.
    """
    if network not in KOHYA:
        raise UsageError(
            f"export: kohya's names are known for UNets, FLUX and SD 3, and this adapter belongs to a {network}. Use "
            "--as comfyui, or --as diffusers."
        )
    parts: dict[str, dict[int, tuple[Any, Any]]] = {}
    heights: dict[str, tuple[int, ...]] = {}
    for path, factors in layers.items():
        where = re.fullmatch(r"(\w+)\.(\d+)\.(.+)", path)
        blocks, table = KOHYA[network].get(where[1] if where else "", ("", {}))
        if where is None or where[3] not in table:
            raise UsageError(
                f"export: kohya has no name for the layer {path} of a {network} that is sure. Use --as comfyui, or --as "
                "diffusers; or train without it (lora.targets)."
            )
        layer, place, heights_here = table[where[3]]
        name = f"lora_unet_{blocks}_{where[2]}_{layer}"
        parts.setdefault(name, {})[place], heights[name] = factors, heights_here
    return {name: _diagonal(found, heights[name]) for name, found in parts.items()}


def _diagonal(parts: Mapping[int, tuple[Any, Any]], heights: tuple[int, ...]) -> tuple[Any, Any]:
    """Factors of the parts of a fused layer -> its own: inputs one below the other, outputs block by block."""
    if len(heights) == 1:
        return parts[0]
    import torch

    place, (down, up) = next(iter(parts.items()))
    rank, unit = len(down), len(up) // heights[place]
    empty = torch.zeros_like(down)
    found = [parts.get(i, (empty, up.new_zeros(unit * height, rank))) for i, height in enumerate(heights)]
    return torch.cat([down for down, _ in found]), torch.block_diag(*(up for _, up in found))
