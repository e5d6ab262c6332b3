"""Estimate of the calls, tokens and cost of a judge behind a server, for `--dry-run`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefkit.images import size as size_of
from prefkit.score.judge.question import JudgeOptions, Question
from prefkit.types import Candidate

LETTERS_PER_TOKEN = 4.0  # roughly, in English text
PIXELS_PER_TOKEN = 28 * 28  # for Qwen-VL models; other models use between half and three times as many tokens
CHAT_TOKENS = 12  # tokens that a chat template adds


def estimate(
    options: JudgeOptions, sample: Sequence[Candidate], questions: Sequence[Question], calls: int, answer: int
) -> dict[str, Any]:
    """Estimate tokens and cost of `calls` questions that are on average like `questions`.

    The images are assumed to have the average size of `sample`. answer: maximum number of tokens of an answer. Cached
    answers, which would cost nothing, and retries are not counted.
    """
    parts, count = [part for question in questions for part in question.parts], max(len(questions), 1)
    words = sum(len(part) for part in parts if isinstance(part, str)) / count / LETTERS_PER_TOKEN
    images = sum(not isinstance(part, str) for part in parts) / count
    sizes = [size_of((c.image if c.image is not None else c.path) or "") for c in sample]  # from the files' headers
    pixels = sum(width * height for width, height in sizes) / max(len(sizes), 1)
    sent = calls * (CHAT_TOKENS + words + images * pixels / PIXELS_PER_TOKEN)
    cost: float | str = "set price_in and price_out"
    if options.price_in is not None and options.price_out is not None:
        cost = round((sent * options.price_in + calls * answer * options.price_out) / 1e6, 4)
    return {
        "calls (est.)": calls,
        "tokens in (est.)": round(sent),
        "tokens out (est., most)": calls * answer,
        "cost (est., most)": cost,
    }
