"""What `requests: {source: tiny}` reads: requests of the wardrobe with the made-up user whose taste they leave open.

tiny           `open`, and every garment once without a word on its background, half of them held out: those trained on
               teach that backgrounds do not matter, the held-out ones show whether tuning left them alone
tiny:full      tiny:open      tiny:outfit        one kind, as in prefkit/tiny/requests.py
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prefkit.tiny.captions import Asked, held_out, phrase
from prefkit.tiny.domain import ITEMS
from prefkit.tiny.requests import requests

USER = "mira"
TRAIN, TEST = 72, 36  # requests of a kind
HELD_OUT_BARE = 0.5


def rows(kind: str = "") -> Iterator[dict[str, Any]]:
    """prompt, split, and as extra the user. No category: her whole history speaks, since the few items of one part of
    an outfit would speak of their backgrounds too. Raises UsageError for a kind that there is not."""
    for request in requests(kind or "open", TRAIN, TEST):
        yield _row(request.prompt, request.split)
    for item in () if kind else ITEMS:
        yield _row(phrase(Asked(item)), "test" if held_out(HELD_OUT_BARE, "bare", item) else "train")


def _row(prompt: str, split: str) -> dict[str, Any]:
    return {"prompt": prompt, "split": split, "user": USER}
