"""The embedded judge in classes of transformers: FastVLM with a ResNet of timm and a small Llama, and its processor.

A 64 x 64 picture becomes 4 image tokens. A word is one token; the vocabulary is that of the wardrobe's captions and of the
questions that prefkit's judge scorers ask.
"""

from __future__ import annotations

import re

import torch
from judge_questions import LEVELS, texts
from negatives import CHOICES
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    LlamaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    TimmWrapperConfig,
)

from prefkit.tiny.captions import VOCABULARY

WIDTH, FEATURES, TOKENS = 128, 512, 4  # of the decoder, of the ResNet's last map, image tokens of a picture
PAD, UNKNOWN, START, END, IMAGE, ANSWER = "<pad>", "<unk>", "<s>", "</s>", "<image>", "<answer>"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}<answer>{% endif %}"
    "{% if message.content is string %} {{ message.content }} {% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %} {{ part.text }} {% endif %}{% endfor %}{% endif %}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<answer>{% endif %}"
)
#: the classes of the ResNet's heads, in the order of their rows
CLASSES = {**CHOICES, "quality": list(LEVELS)}
ROWS = sum(map(len, CLASSES.values()))


def tokenizer() -> PreTrainedTokenizerFast:
    """Words and punctuation marks, in lower case."""
    words = {word for text in texts() for word in re.findall(r"\w+|[^\w\s]", text.lower())}
    words |= {*VOCABULARY, *LEVELS, "a", "b", "tie", "yes", "no"}
    special = [PAD, UNKNOWN, START, END, IMAGE, ANSWER]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *sorted(words)])}, UNKNOWN))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    names = {"pad_token": PAD, "unk_token": UNKNOWN, "bos_token": START, "eos_token": END}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, **names, extra_special_tokens={"image_token": IMAGE, "answer_token": ANSWER}
    )


def processor() -> LlavaProcessor:
    size = {"height": 64, "width": 64}
    images = CLIPImageProcessorPil(
        do_center_crop=False, size=size, crop_size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return LlavaProcessor(
        images, tokenizer(), patch_size=32, vision_feature_select_strategy="full", chat_template=TEMPLATE
    )


def judge(words: PreTrainedTokenizerFast) -> FastVlmForConditionalGeneration:
    """Build the model with random weights; embeddings and layers of the decoder start with std 1 / sqrt(WIDTH)."""
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        initializer_range=WIDTH**-0.5,
        tie_word_embeddings=True,
        pad_token_id=words.pad_token_id,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    shape = {"layers": [1, 2, 2, 1], "channels": [16, 32, 64, 128], "stem_width": 8}
    vision = TimmWrapperConfig(architecture="resnetaa50d", model_args=shape, hidden_size=FEATURES)
    config = FastVlmConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=words.convert_tokens_to_ids(IMAGE),
        image_seq_length=TOKENS,
        tie_word_embeddings=True,
    )
    model = FastVlmForConditionalGeneration(config)
    model.generation_config.eos_token_id = words.eos_token_id
    model.generation_config.pad_token_id = words.pad_token_id
    return model


class Heads(nn.Module):
    """Linear classifiers on the mean of the ResNet's last map: item, colour, background, pattern, level of quality."""

    def __init__(self) -> None:
        super().__init__()
        self.all = nn.Linear(FEATURES, ROWS)

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """features [B, 512, 2, 2] -> name of the attribute -> logits [B, its values]."""
        parts = self.all(features.mean((2, 3))).split([len(values) for values in CLASSES.values()], -1)
        return dict(zip(CLASSES, parts))


@torch.no_grad()
def start_from_heads(model: FastVlmForConditionalGeneration, heads: Heads, words: PreTrainedTokenizerFast) -> None:
    """Let the projector write the words of the classes that the heads see.

    Row j of linear_1 is .25 x row j of the heads, and column j of linear_2 the embedding of the name of class j.
    """
    projector = model.model.multi_modal_projector
    embeddings = model.get_input_embeddings().weight
    nn.init.normal_(projector.linear_1.weight, std=0.02)
    nn.init.normal_(projector.linear_2.weight, std=0.02)
    projector.linear_1.weight[:ROWS] = 0.25 * heads.all.weight
    projector.linear_1.bias[:ROWS] = 0.25 * heads.all.bias
    projector.linear_2.bias.zero_()
    for j, name in enumerate(name for values in CLASSES.values() for name in values):
        ids = words(name, add_special_tokens=False).input_ids
        projector.linear_2.weight[:, j] = embeddings[ids].mean(0)
