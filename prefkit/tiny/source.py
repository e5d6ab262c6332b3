"""Requests (`requests: {source: tiny}`) of a fictitious user, whose taste decides what the prompts leave open.

tiny           requests of kind `open`, and one request per item without a background. Half of these teach in
               training that backgrounds do not matter; the held-out half shows whether tuning changed backgrounds
tiny:full      tiny:open      tiny:outfit        only requests of this kind, as in prefkit/tiny/requests.py
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prefkit.tiny.captions import Asked, held_out, phrase
from prefkit.tiny.domain import ITEMS
from prefkit.tiny.requests import requests

USER = "mira"
TRAIN, TEST = 72, 36  # requests per kind
HELD_OUT_BARE = 0.5


def rows(kind: str = "") -> Iterator[dict[str, Any]]:
    """Yield rows with prompt, split and user. Raises UsageError for an unknown kind.

    The rows have no category, so that scorers use the user's whole history. The few liked images of one category
    would suggest a taste for their backgrounds.
    """
    for request in requests(kind or "open", TRAIN, TEST):
        yield _row(request.prompt, request.split)
    for item in () if kind else ITEMS:
        yield _row(phrase(Asked(item)), "test" if held_out(HELD_OUT_BARE, "bare", item) else "train")


def _row(prompt: str, split: str) -> dict[str, Any]:
    return {"prompt": prompt, "split": split, "user": USER}
