"""How many prompts are longer than a pipeline's text encoders read: counted once, in place of a library's line for each."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ENDLESS = 100_000  # a tokenizer that says more than this has no limit of its own
BATCH = 1000


def too_long(pipe: Any, prompts: Sequence[str], call: Mapping[str, Any] | None = None) -> tuple[int, int]:
    """(prompts that no text encoder of `pipe` reads to the end, tokens that the longest-reading one reads).

    Where several encoders read a prompt (77 tokens by CLIP, 256 by T5), it is cut only if all of them cut it. call: further
    arguments of the pipeline's call. (0, 0) for a pipeline without limits.
    """
    readers = list(_readers(pipe, call or {}))
    if not readers or any(limit is None for _, limit in readers):
        return 0, 0
    count = 0
    for start in range(0, len(prompts), BATCH):
        part = list(prompts[start : start + BATCH])
        cut = [[tokens > (limit or 0) for tokens in lengths(tokenizer, part)] for tokenizer, limit in readers]
        count += sum(all(each) for each in zip(*cut, strict=True))
    return count, max(limit or 0 for _, limit in readers)


def lengths(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Tokens of each text, with those that mark its start and end."""
    return [len(ids) for ids in tokenizer(list(texts), truncation=False, verbose=False).input_ids]


def said(what: str, count: int, of: int, limit: int) -> str:
    verb = "is" if count == 1 else "are"
    return (
        f"{what}: {count} of {of} prompts {verb} longer than the text encoder reads ({limit} tokens); the rest is cut."
    )


def _readers(pipe: Any, call: Mapping[str, Any]) -> Iterator[tuple[Any, int | None]]:
    """Each tokenizer with the tokens that are read after it; None for no limit."""
    asked = inspect.signature(type(pipe).__call__).parameters.get("max_sequence_length")
    most = call.get("max_sequence_length", asked.default if asked is not None else None)
    for name, tokenizer in getattr(pipe, "components", {}).items():
        if not name.startswith("tokenizer") or not callable(tokenizer):
            continue
        limit = getattr(tokenizer, "model_max_length", None)
        limits = [limit] if isinstance(limit, int) and limit < ENDLESS else []
        if isinstance(most, int) and not type(tokenizer).__name__.startswith("CLIP"):
            limits = [most]  # what the pipeline pads and cuts to, whatever the tokenizer says
        yield tokenizer, min(limits, default=None)
