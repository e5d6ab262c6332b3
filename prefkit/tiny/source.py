"""Source of `requests: {source: tiny}`: requests of the wardrobe with a fictitious user, whose taste decides what they leave open.

tiny           `open`, and every garment once without a background, half of them held out: those in training teach that
               backgrounds do not matter, and the held-out ones show whether tuning changed them
tiny:full      tiny:open      tiny:outfit        one kind, as in prefkit/tiny/requests.py
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
    """Rows of prompt, split and user. Raises UsageError for an unknown kind.

    Without a category, scorers use the user's whole history; the few items of one part of an outfit would reveal a taste for
    their backgrounds too.
    """
    for request in requests(kind or "open", TRAIN, TEST):
        yield _row(request.prompt, request.split)
    for item in () if kind else ITEMS:
        yield _row(phrase(Asked(item)), "test" if held_out(HELD_OUT_BARE, "bare", item) else "train")


def _row(prompt: str, split: str) -> dict[str, Any]:
    return {"prompt": prompt, "split": split, "user": USER}
