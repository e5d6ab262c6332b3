"""BLIP's image-grounded text encoder (Li et al., arXiv 2201.12086) from a checkpoint of the original code.

The modules are those of transformers; this file translates the original weight names and derives the sizes. The first
token is CLS, as in ImageReward; BLIP's own matching head uses another token.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from prefkit.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

HEAD_WIDTH = 64  # width of an attention head in the image encoder: 12 heads at width 768, 16 at 1024
RENAMED = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
    "blocks": "encoder.layers",
    "norm": "post_layernorm",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
}
UNUSED = ("vision_proj.", "text_proj.", "text_encoder.embeddings.position_ids")


class Blip(torch.nn.Module):
    """BLIP for square images of `size` pixels. Raises UsageError for a checkpoint of another model."""

    def __init__(self, state: dict[str, Tensor], prefix: str, config: Path, path: Path) -> None:
        super().__init__()
        inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        images = {
            _renamed(k.removeprefix("visual_encoder.")): v for k, v in inner.items() if k.startswith("visual_encoder.")
        }
        texts = {k.removeprefix("text_encoder."): v for k, v in inner.items() if k.startswith("text_encoder.")}
        try:
            vision = _vision_config(images)
            text = _text_config(json.loads(config.read_text(encoding="utf-8")), vision.hidden_size)
            self.image_encoder = BlipVisionModel(vision)
            self.text_encoder = BlipTextModel(text, add_pooling_layer=False)
            self.image_encoder.load_state_dict(images)
            self.text_encoder.load_state_dict({k: v for k, v in texts.items() if k != "embeddings.position_ids"})
        except (KeyError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"{path} with {config} is not a BLIP checkpoint: {' '.join(str(error).split())[:300]}"
            ) from error
        others = [key for key in inner if not key.startswith(("visual_encoder.", "text_encoder.", *UNUSED))]
        if others:
            raise UsageError(f"{path} has weights that BLIP does not have: {', '.join(others[:4])}.")
        self.size = _side(images)

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the last hidden state [B, D] of CLS. pixels: [B, 3, S, S]; ids and mask: [B, T]."""
        states = self.image_encoder(pixels).last_hidden_state
        return self.text_encoder(ids, attention_mask=mask, encoder_hidden_states=states).last_hidden_state[:, 0]


def _renamed(key: str) -> str:
    parts = key.split(".")
    if parts[0] == "blocks":
        inside = ".".join(parts[2:-1])
        return ".".join(["encoder.layers", parts[1], RENAMED.get(inside, inside), parts[-1]])
    if key in RENAMED:
        return RENAMED[key]
    inside = ".".join(parts[:-1])
    return f"{RENAMED.get(inside, inside)}.{parts[-1]}"


def _side(state: dict[str, Tensor]) -> int:
    """Return the side of the square image in px: patches per row times patch size. Position 0 is CLS."""
    positions = state["embeddings.position_embedding"].shape[1] - 1
    return round(positions**0.5) * state["embeddings.patch_embedding.weight"].shape[-1]


def _vision_config(state: dict[str, Tensor]) -> BlipVisionConfig:
    """Return a config with the sizes of the weights and the constants of the original vision transformer (eps 1e-6)."""
    width, _, patch, _ = state["embeddings.patch_embedding.weight"].shape
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=state["encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=len({key.split(".")[2] for key in state if key.startswith("encoder.layers.")}),
        num_attention_heads=width // HEAD_WIDTH,
        image_size=_side(state),
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        attention_dropout=0.0,
    )


def _text_config(published: dict[str, Any], image_width: int) -> BlipTextConfig:
    """Convert med_config.json to a transformers config, in which `is_decoder` adds cross-attention."""
    names = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads max_position_embeddings"
    sizes = {name: published[name] for name in (*names.split(), "hidden_act", "layer_norm_eps", "pad_token_id")}
    return BlipTextConfig(**sizes, encoder_hidden_size=image_width, is_decoder=True)
