"""`model.long_prompts: chunks`: encode prompts that are longer than CLIP reads in several parts, for SD and SDXL.

A prompt is cut between words into chunks of at most 75 tokens. The pipeline's own encode_prompt encodes each chunk, and
the embeddings are joined along the tokens, so the denoiser attends to all of them. The pooled embedding of SDXL is that
of the first chunk. Prompts of one chunk are encoded as without this option. The negative prompt gets as many chunks as
the prompt; chunks that a prompt or a negative prompt lacks are those of an empty text.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import torch

from prefkit.errors import UsageError

CHOICES = ("cut", "chunks")
TEXTS = ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2")


def supports_chunks(pipe: Any) -> bool:
    """True if all tokenizers are CLIP's, and the denoiser is a U-Net, which accepts any number of tokens."""
    tokenizers = [part for name, part in pipe.components.items() if name.startswith("tokenizer") and part is not None]
    clip = all(type(tokenizer).__name__.startswith("CLIPTokenizer") for tokenizer in tokenizers)
    return bool(tokenizers) and clip and "unet" in pipe.components and hasattr(pipe, "encode_prompt")


def encode_in_chunks(pipe: Any) -> None:
    """Let pipe.encode_prompt encode long prompts in chunks. Raises UsageError for a pipeline that does not support it."""
    if not supports_chunks(pipe):
        raise UsageError(
            f"model.long_prompts is chunks, but {type(pipe).__name__} is not a Stable Diffusion or SDXL pipeline, whose "
            "denoiser accepts any number of CLIP tokens. Remove the key."
        )
    encode, signature = pipe.encode_prompt, inspect.signature(pipe.encode_prompt)

    @functools.wraps(encode)
    def encode_prompt(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        extra = given.pop("kwargs", {})
        texts = {key: as_list(given[key]) for key in TEXTS if key in given and given[key] is not None}
        count = max((chunk_count(pipe, text) for key in texts for text in texts[key]), default=1)
        if count == 1 or "prompt" not in texts:
            return encode(*args, **kwargs)
        parts = {key: [chunks(pipe, text, count) for text in texts[key]] for key in texts}
        results = []
        for number in range(count):
            part = {key: [text[number] for text in parts[key]] for key in parts}
            results.append(encode(**(given | part), **extra))
        return tuple(map(_joined, zip(*results, strict=True)))

    pipe.encode_prompt, pipe.prompt_chunks = encode_prompt, functools.partial(chunk_count, pipe)


def as_list(texts: str | Sequence[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)


def _joined(values: Sequence[Any]) -> Any:
    """Join embeddings [B, tokens, D] along the tokens; of pooled embeddings [B, D], return the first chunk's."""
    first = values[0]
    return torch.cat(list(values), dim=1) if isinstance(first, torch.Tensor) and first.dim() == 3 else first


def chunk_count(pipe: Any, text: str) -> int:
    return len(chunks(pipe, text))


def chunks(pipe: Any, text: str, count: int = 1) -> list[str]:
    """Cut a text between words into parts that the tokenizer does not truncate; add empty parts up to `count`."""
    tokenizer = pipe.tokenizer if getattr(pipe, "tokenizer", None) is not None else pipe.tokenizer_2
    room = tokenizer.model_max_length - 2  # start and end tokens
    words = text.split()
    sizes = [len(ids) for ids in tokenizer(words, add_special_tokens=False, verbose=False).input_ids] if words else []
    if sum(sizes) <= room:
        return [text] + [""] * (count - 1)
    parts: list[list[str]] = [[]]
    used = 0
    for word, size in zip(words, sizes, strict=True):
        if parts[-1] and used + size > room:
            parts.append([])
            used = 0
        parts[-1].append(word)
        used += size
    return [" ".join(part) for part in parts] + [""] * (count - len(parts))
