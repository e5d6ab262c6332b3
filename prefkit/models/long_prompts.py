"""Count the prompts that a pipeline's text encoders truncate, so that one warning replaces a line per prompt."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

UNLIMITED = 100_000  # tokenizers without a limit report a limit above this
BATCH = 1000


def too_long(pipe: Any, prompts: Sequence[str], call: Mapping[str, Any] | None = None) -> tuple[int, int]:
    """Return (number of prompts that all text encoders truncate, largest token limit of an encoder).

    A prompt that only one of several encoders truncates does not count (CLIP reads 77 tokens, T5 256). call: further
    arguments of the pipeline's call. Returns (0, 0) if an encoder has no limit.
    """
    if hasattr(pipe, "prompt_chunks"):  # model.long_prompts: chunks
        return 0, 0
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


def truncation_warning(stage: str, count: int, total: int, limit: int, remedy: str = "") -> str:
    """Return the warning. remedy: a further sentence, with a space in front."""
    longer = f"{'is' if count == 1 else 'are'} longer than the text encoder reads ({limit} tokens)"
    return f"{stage}: {count} of {total} prompts {longer}; the text beyond that is ignored.{remedy}"


def _tokenizers(pipe: Any, call: Mapping[str, Any]) -> Iterator[tuple[Any, int | None]]:
    """Yield each tokenizer with the number of tokens that its text encoder reads, or None if there is no limit."""
    parameter = inspect.signature(type(pipe).__call__).parameters.get("max_sequence_length")
    max_length = call.get("max_sequence_length", parameter.default if parameter is not None else None)
    for name, tokenizer in getattr(pipe, "components", {}).items():
        if not name.startswith("tokenizer") or not callable(tokenizer):
            continue
        limit = getattr(tokenizer, "model_max_length", None)
        if isinstance(max_length, int) and not type(tokenizer).__name__.startswith("CLIP"):
            limit = max_length  # the pipeline truncates to this length, whatever the tokenizer's limit
        elif not isinstance(limit, int) or limit >= UNLIMITED:
            limit = None
        yield tokenizer, limit
