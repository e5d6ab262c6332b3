"""Tiny reward models in the files of the published ones: Qwen2-VL with a head (HPSv3), Qwen2.5-VL with two (EditReward).

The base folder has the files and keys that Hub repositories of these models have, and the checkpoint has the names of
tensors of the published ones. Weights are a formula, so that every environment makes the same model.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

HIDDEN, HEADS, DEPTH, INNER = 32, 4, 2, 48
MARKS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUESTION = "Rate this image for the prompt {text_prompt}.\nOverall: <|Reward|>\n\nEND\n"


def letters() -> list[str]:
    """The 256 characters of byte-level tokenizers: printable bytes as they are, others moved up."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [chr(256 + n) for n in range(256 - len(kept))]
    return [*map(chr, kept), *others]


def write_base(folder: Path, kind: str) -> None:
    """Write configuration and processor. kind: qwen2_vl or qwen2_5_vl."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {letter: number for number, letter in enumerate(letters())}
    marks = {str(len(vocab) + n): {"content": mark, "special": True} | FLAGS for n, mark in enumerate(MARKS)}
    ids = {mark: len(vocab) + n for n, mark in enumerate(MARKS)}
    tokenizer = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": marks, "model_max_length": 4096}
    tokenizer |= {"pad_token": MARKS[0], "eos_token": MARKS[2], "bos_token": None, "unk_token": None}
    files: dict[str, Any] = {
        "vocab.json": vocab,
        "tokenizer_config.json": tokenizer | {"additional_special_tokens": list(MARKS[1:]), "chat_template": TEMPLATE},
        "chat_template.json": {"chat_template": TEMPLATE},
        "preprocessor_config.json": preprocessor(kind),
        "config.json": config(kind, ids, len(vocab) + len(MARKS)),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n")


FLAGS = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}


def preprocessor(kind: str) -> dict[str, Any]:
    return {
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor" if kind == "qwen2_vl" else "Qwen2_5_VLProcessor",
    }


def config(kind: str, ids: dict[str, int], words: int) -> dict[str, Any]:
    newer = kind == "qwen2_5_vl"
    shared = {"depth": DEPTH, "num_heads": HEADS, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
    inner = {"hidden_size": HIDDEN, "intermediate_size": INNER, "out_hidden_size": HIDDEN, "window_size": 112}
    inner |= {"fullatt_block_indexes": [1], "hidden_act": "silu", "in_chans": 3}
    outer = {"embed_dim": HIDDEN, "hidden_size": HIDDEN, "mlp_ratio": 2, "in_chans": 3, "hidden_act": "quick_gelu"}
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration" if newer else "Qwen2VLForConditionalGeneration"],
        "model_type": kind,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "num_hidden_layers": DEPTH,
        "max_position_embeddings": 4096,
        "max_window_layers": DEPTH,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_sliding_window": False,
        "sliding_window": 4096,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "vocab_size": words,
        "bos_token_id": ids[MARKS[0]],
        "eos_token_id": ids[MARKS[2]],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_config": shared | (inner if newer else outer) | {"model_type": kind},
    }


def shapes(kind: str, words: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the checkpoint's tensors."""
    newer = kind == "qwen2_5_vl"
    inner = INNER if newer else 2 * HIDDEN
    found = {"visual.patch_embed.proj.weight": (HIDDEN, 3, 2, 14, 14), "lm_head.weight": (words, HIDDEN)}
    for n in range(DEPTH):
        block = f"visual.blocks.{n}."
        linear = {"attn.qkv": (3 * HIDDEN, HIDDEN), "attn.proj": (HIDDEN, HIDDEN)}
        if newer:
            linear |= {f"mlp.{name}_proj": (inner, HIDDEN) for name in ("gate", "up")}
            linear |= {"mlp.down_proj": (HIDDEN, inner)}
        else:
            linear |= {"mlp.fc1": (inner, HIDDEN), "mlp.fc2": (HIDDEN, inner)}
        found |= {f"{block}{name}.weight": shape for name, shape in linear.items()}
        found |= {f"{block}{name}.bias": shape[:1] for name, shape in linear.items()}
        for norm in ("norm1", "norm2"):
            found |= {f"{block}{norm}.{part}": (HIDDEN,) for part in (["weight"] if newer else ["weight", "bias"])}
        layer = f"model.layers.{n}."
        for name, rows in {"q": HIDDEN, "k": HIDDEN // 2, "v": HIDDEN // 2}.items():
            found |= {
                f"{layer}self_attn.{name}_proj.weight": (rows, HIDDEN),
                f"{layer}self_attn.{name}_proj.bias": (rows,),
            }
        found |= {f"{layer}self_attn.o_proj.weight": (HIDDEN, HIDDEN), f"{layer}mlp.down_proj.weight": (HIDDEN, INNER)}
        found |= {f"{layer}mlp.{name}_proj.weight": (INNER, HIDDEN) for name in ("gate", "up")}
        found |= {f"{layer}{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
    merged = {"visual.merger.mlp.0": (4 * HIDDEN, 4 * HIDDEN), "visual.merger.mlp.2": (HIDDEN, 4 * HIDDEN)}
    found |= {f"{name}.weight": shape for name, shape in merged.items()}
    found |= {f"{name}.bias": shape[:1] for name, shape in merged.items()}
    found |= {f"visual.merger.ln_q.{part}": (HIDDEN,) for part in (["weight"] if newer else ["weight", "bias"])}
    found |= {"model.embed_tokens.weight": (words, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for head in ["rm_heads.head_0", "rm_heads.head_1"] if newer else ["rm_head"]:
        for number, shape in {0: (1024, HIDDEN), 3: (16, 1024), 5: (2, 16)}.items():
            found |= {f"{head}.{number}.weight": shape, f"{head}.{number}.bias": shape[:1]}
    return found


def tensors(kind: str) -> dict[str, Any]:
    """Return the checkpoint: norms near 1, other values between -2 and 2 over the square root of the width."""
    import torch

    words = 256 + len(MARKS) + 1
    found, start = {}, 1
    for name, shape in sorted(shapes(kind, words).items()):
        size = math.prod(shape)
        noise = torch.sin(torch.arange(start, start + size, dtype=torch.float64) * 12.9898) * 43758.5453
        wave = (2 * (noise - noise.floor()) - 1).float().reshape(shape)
        start += size
        norm = "norm" in name or "ln_q" in name
        found[name] = 1 + 0.1 * wave if norm and name.endswith("weight") else wave * 2 / math.sqrt(max(shape[-1], 16))
    return found


def write(folder: Path, kind: str, whole: bool = False) -> Path:
    """Write the base model's files, and `checkpoint.safetensors`, into a folder; return the folder.

    whole: also write the base model's weights, which published code loads first
    """
    import safetensors.torch

    write_base(folder, kind)
    state = tensors(kind)
    if kind == "qwen2_5_vl":  # EditReward's are the names of transformers 4.57, HPSv3's those of 4.45
        state = {re.sub("^model\\.", "model.language_model.", name): value for name, value in state.items()}
        state = {re.sub("^visual\\.", "model.visual.", name): value for name, value in state.items()}
    safetensors.torch.save_file(state, folder / "checkpoint.safetensors", {"format": "pt"})
    if whole:
        words = ("embed_tokens.weight", "lm_head.weight")
        base = {name: value for name, value in state.items() if not name.startswith("rm_")}
        base = {name: (value[:-1].clone() if name.endswith(words) else value) for name, value in base.items()}
        safetensors.torch.save_file(base, folder / "model.safetensors", {"format": "pt"})
    return folder
