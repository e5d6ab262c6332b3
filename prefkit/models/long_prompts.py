"""Count the prompts that a pipeline's text encoders truncate, for one warning instead of a line per prompt."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

UNLIMITED = 100_000  # tokenizers without a limit report a larger number
BATCH = 1000


def too_long(pipe: Any, prompts: Sequence[str], call: Mapping[str, Any] | None = None) -> tuple[int, int]:
    """Count the prompts that every text encoder truncates. Returns (count, largest number of tokens an encoder reads).

    If several encoders read a prompt (CLIP reads 77 tokens, T5 256), it counts only if all of them truncate it. call:
    further arguments of the pipeline's call. Returns (0, 0) for a pipeline without limits.
    """
    tokenizers = list(_tokenizers(pipe, call or {}))
    limits = [limit for _, limit in tokenizers if limit is not None]
    if not tokenizers or len(limits) < len(tokenizers):
        return 0, 0
    count = 0
    for start in range(0, len(prompts), BATCH):
        part = list(prompts[start : start + BATCH])
        cut = [[n > limit for n in lengths(tokenizer, part)] for (tokenizer, _), limit in zip(tokenizers, limits)]
        count += sum(map(all, zip(*cut, strict=True)))
    return count, max(limits)


def lengths(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Return the number of tokens in each text, including start and end tokens."""
    return [len(ids) for ids in tokenizer(list(texts), truncation=False, verbose=False).input_ids]


def truncation_warning(stage: str, count: int, total: int, limit: int) -> str:
    longer = f"{'is' if count == 1 else 'are'} longer than the text encoder reads ({limit} tokens)"
    return f"{stage}: {count} of {total} prompts {longer}; the excess is cut."


def _tokenizers(pipe: Any, call: Mapping[str, Any]) -> Iterator[tuple[Any, int | None]]:
    """Yield each tokenizer with the number of tokens that its text encoder reads, or None without a limit."""
    parameter = inspect.signature(type(pipe).__call__).parameters.get("max_sequence_length")
    max_length = call.get("max_sequence_length", parameter.default if parameter is not None else None)
    for name, tokenizer in getattr(pipe, "components", {}).items():
        if not name.startswith("tokenizer") or not callable(tokenizer):
            continue
        limit = getattr(tokenizer, "model_max_length", None)
        if isinstance(max_length, int) and not type(tokenizer).__name__.startswith("CLIP"):
            limit = max_length  # the pipeline pads and truncates to this, regardless of the tokenizer
        elif not isinstance(limit, int) or limit >= UNLIMITED:
            limit = None
        yield tokenizer, limit
