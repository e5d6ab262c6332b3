"""Reward models on Qwen2-VL or Qwen2.5-VL: an MLP head on the hidden state of the token <|Reward|> (HPSv3, EditReward).

Facts from the published code (hpsv3 1.0.0; EditReward at commit edb027e):

    image     resized so that both sides are multiples of 28 and the area is about 256 x 28 x 28 pixels (bicubic)
    text      question and prompt, then a line that ends with <|Reward|>; one user message in the base model's chat
              template, images first. <|Reward|> is added to the base model's vocabulary as its last token.
    positions 0, 1, 2, ... for all tokens, images included, because the published model passes embeddings, not tokens,
              to its language model, which then does not know the grid of the image
    head      Linear(hidden, 1024), ReLU, Linear(1024, 16), ReLU, Linear(16, 2), in float32; its two outputs are mu
              and log sigma of the score
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

TOKEN = "<|Reward|>"
FACTOR, PIXELS = 28, 256 * 28 * 28
KINDS = ("qwen2_vl", "qwen2_5_vl")
#: name of a tensor in a checkpoint of transformers 4 -> its name in the model without its language model head
NAMES = {r"^model\.(?!language_model\.|visual\.)": "language_model.", r"^model\.": "", r"^lm_head\..*": ""}


class Unusable(Exception):
    """A file or an argument that cannot be used. The message is for the user."""


Question = tuple[Sequence[Image.Image], str]


class RewardModel:
    """A base model with one or more heads.

    base: folder or Hub id of the base model; only its configuration and processor are read
    checkpoint: file with all weights, base and heads
    heads: prefix of each head's tensors in the checkpoint
    """

    def __init__(self, base: str, checkpoint: Path, heads: Sequence[str], device: str, dtype: torch.dtype) -> None:
        transformers.utils.logging.disable_progress_bar()
        config = _read(transformers.AutoConfig, base)
        if config.model_type not in KINDS:
            raise Unusable(f"{base} is a model of type {config.model_type}; --base must be one of {', '.join(KINDS)}.")
        self.processor: Any = _read(transformers.AutoProcessor, base, padding_side="right")
        self.tokenizer = self.processor.tokenizer
        self.tokenizer.add_tokens([transformers.AddedToken(TOKEN, special=True)], special_tokens=True)
        self.token = self.tokenizer.convert_tokens_to_ids(TOKEN)
        state = _tensors(checkpoint)
        self.heads = [_head(state, prefix, config.get_text_config().hidden_size, checkpoint) for prefix in heads]
        self.revision = _hash([tensor for head in self.heads for tensor in head.state_dict().values()])
        self.model = _body(config, state, self.token, checkpoint, dtype)
        for module in (self.model, *self.heads):
            module.to(device).eval()
        self.device, self.dtype = device, dtype

    def outputs(self, questions: Sequence[Question], head: int = 0) -> list[tuple[float, float]]:
        """Return (mu, sigma) of each question. Each text contains <|Reward|> once."""
        inputs = self._inputs(questions)
        found = inputs["input_ids"] == self.token
        mask = inputs["attention_mask"]
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0).expand(3, -1, -1)
        with torch.inference_mode():
            hidden = self.model(**inputs, use_cache=False).last_hidden_state
            mu, log_sigma = self.heads[head](hidden[found].float()).double().cpu().unbind(-1)
        return list(zip(mu.tolist(), log_sigma.exp().tolist(), strict=True))

    def asked(self, text: str, prompt: str) -> str:
        """Return a question about a prompt. Raises ValueError for a prompt that contains a special token of the model."""
        if named := [token for token in {TOKEN, *self.tokenizer.all_special_tokens} if token in prompt]:
            raise ValueError(f"the prompt contains {', '.join(sorted(named))}, a special token of the model")
        return text.replace("{text_prompt}", prompt)

    def _inputs(self, questions: Sequence[Question]) -> Any:
        messages = [
            [{"role": "user", "content": [*({"type": "image"} for _ in images), {"type": "text", "text": text}]}]
            for images, text in questions
        ]
        inputs = self.processor(
            text=self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True),
            images=[resized(image) for images, _ in questions for image in images],
            padding=True,
            return_tensors="pt",
            images_kwargs={"do_resize": False},
        )
        inputs.pop("mm_token_type_ids", None)
        return inputs.to(self.device, self.dtype)


def resized(image: Image.Image) -> Image.Image:
    """Resize as the published code does. Raises ValueError for an aspect ratio above 200."""
    height, width = smart_resize(image.height, image.width, FACTOR, min_pixels=PIXELS, max_pixels=PIXELS)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _read(kind: Any, base: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(base, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise Unusable(f"--base {base} could not be loaded: {' '.join(str(error).split())[:300]}") from error


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a .safetensors or .pth file, on the CPU."""
    import safetensors.torch

    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # safetensors, pickle and zipfile raise their own types
        raise Unusable(f"{path} could not be read as a checkpoint: {error}") from error
    state = state.get("model", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise Unusable(f"{path} could not be read as a checkpoint: it does not contain named tensors.")
    return state


def _head(state: dict[str, torch.Tensor], prefix: str, width: int, path: Path) -> nn.Sequential:
    """Return a head, and remove its tensors from `state`."""
    head = nn.Sequential(
        nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
    )
    own = {name.removeprefix(prefix): state.pop(name) for name in list(state) if name.startswith(prefix)}
    try:
        head.load_state_dict(own)
    except RuntimeError as error:
        raise Unusable(f"{path} has no head {prefix.rstrip('.')} of the published shape: {error}") from error
    return head.float()


def _body(config: Any, state: dict[str, torch.Tensor], token: int, path: Path, dtype: torch.dtype) -> Any:
    """Return the model without its heads, with the checkpoint's tensors."""
    own = {name: tensor for old, tensor in state.items() if (name := renamed(old))}
    rows = next((len(tensor) for name, tensor in own.items() if name.endswith("embed_tokens.weight")), 0)
    if rows <= token:
        raise Unusable(
            f"{path} has {rows} tokens, but {TOKEN} is number {token} in --base; is it the right base model?"
        )
    config.get_text_config().vocab_size = rows
    config.tie_word_embeddings = False
    cls: Any = MODEL_MAPPING[type(config)]
    try:
        model, report = cls.from_pretrained(None, config=config, state_dict=own, dtype=dtype, output_loading_info=True)
    except RuntimeError as error:
        raise Unusable(f"{path} does not fit --base: {' '.join(str(error).split())[:300]}") from error
    wrong = {kind: sorted(map(str, names)) for kind, names in report.items() if names}
    if wrong:
        raise Unusable(f"{path} does not fit --base: {str(wrong)[:300]}")
    return model


def renamed(name: str) -> str:
    """Return a tensor's name in a model of transformers 5 without its language model head; "" for that head."""
    for pattern, new in NAMES.items():
        if re.search(pattern, name):
            return re.sub(pattern, new, name)
    return name


def _hash(tensors: Sequence[torch.Tensor]) -> str:
    """Return a hash of tensors. The heads are trained with the rest, so their hash identifies a checkpoint."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.contiguous().numpy().tobytes())
    return total.hexdigest()[:12]
