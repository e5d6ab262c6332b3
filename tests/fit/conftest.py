"""Tiny random instances of the real classes, saved and read back as published ones are."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # cornac_numbers
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of 32x32 images that tells letters apart."""
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    vocab = {t: i for i, t in enumerate([*LETTERS, *(c + "</w>" for c in LETTERS), "<|startoftext|>", "<|endoftext|>"])}
    CLIPTokenizer(vocab=vocab, merges=[]).save_pretrained(folder)
    config: dict[str, Any] = {"do_resize": True, "resample": 3, "do_rescale": True, "do_normalize": True}
    config |= {"do_convert_rgb": True, "rescale_factor": 1 / 255, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    config |= {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "do_center_crop": True}
    config |= {"crop_size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    body = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(vocab), "max_position_embeddings": 20, "eos_token_id": len(vocab) - 1, **body}
    torch.manual_seed(1)
    model = CLIPModel(
        CLIPConfig(text_config=text, vision_config={"image_size": 32, "patch_size": 16, **body}, projection_dim=24)
    )
    model.logit_scale.data.fill_(np.log(10))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA with a byte tokenizer, whose chat template marks who speaks."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("vlm") / "llava"
    marks = ["<pad>", "<s>", "</s>", "<image>"]
    vocab = {t: i for i, t in enumerate([*marks, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, additional_special_tokens=marks, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}USER: {% endif %}{% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
    )
    transformers.LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    small: Any = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = transformers.CLIPVisionConfig(image_size=28, patch_size=14, **small)
    text = transformers.LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **small)
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=marks.index("<image>"), vision_feature_layer=-1
    )
    torch.manual_seed(0)
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    return folder
