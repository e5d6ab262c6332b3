"""What asking a server may cost, before anything is asked: an estimate, for `--dry-run`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefkit.images import size as size_of
from prefkit.score.judge.question import JudgeOptions
from prefkit.types import Candidate

LETTERS_A_TOKEN = 4.0  # of English text, about
PIXELS_A_TOKEN = 28 * 28  # as Qwen-VL models count; others take between a half and three times as many
CHAT_TOKENS = 12  # what a chat template adds


def estimate(
    options: JudgeOptions, sample: Sequence[Candidate], texts: Sequence[str], calls: int, answer: int, images: int = 1
) -> dict[str, Any]:
    """Calls, tokens and cost of `calls` questions like `texts`, with `images` images each like those of `sample`.

    answer: the most tokens of an answer. Cached answers, which are not known before, cost nothing; retries cost more.
    cost is None where a price is not set.
    """
    words = sum(map(len, texts)) / max(len(texts), 1) / LETTERS_A_TOKEN
    seen = [size[0] * size[1] / PIXELS_A_TOKEN for size in map(_size, sample)]
    sent = calls * (CHAT_TOKENS + words + images * (sum(seen) / max(len(seen), 1)))
    row: dict[str, Any] = {
        "calls (est.)": calls,
        "tokens in (est.)": round(sent),
        "tokens out (est., most)": calls * answer,
    }
    cost = None
    if options.price_in is not None and options.price_out is not None:
        cost = round((sent * options.price_in + calls * answer * options.price_out) / 1e6, 4)
    return row | {"cost (est., most)": cost if cost is not None else "set price_in and price_out"}


def _size(candidate: Candidate) -> tuple[int, int]:
    """Read from the head of the file, without decoding it."""
    source = candidate.image if candidate.image is not None else candidate.path
    return size_of(source or "")
