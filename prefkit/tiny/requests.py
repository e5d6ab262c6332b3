"""Requests of the wardrobe, split by content: what is held out as `test` shares no item/colour pair or outfit with `train`.

full     a red dress on a plain mint background                  test: (item, colour) pairs that were never rendered
open     a dress on a plain mint background                      test: a quarter of all (item, background) cells
outfit   a handbag to go with a red dress on a plain mint ...    test: outfits that no training caption has

The embedded models never saw a test request of `full` and `outfit`; they saw the cells of `open`, whose split only
keeps preference tuning and its evaluation apart. Outfits here have a coloured other piece: beside a black, white or
brown one everything would do.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from prefkit.errors import UsageError
from prefkit.registry import nearest
from prefkit.tiny.captions import PLAIN, Asked, held_out, held_out_outfit, held_out_pair, outfits, phrase
from prefkit.tiny.domain import BACKGROUNDS, COLOURS, ITEMS, PATTERNS
from prefkit.tiny.rules import NEUTRAL
from prefkit.types import Request, digest

KINDS = ("full", "open", "outfit")
HELD_OUT_CELLS = 0.25


def requests(kind: str, train: int, test: int, seed: int = 0) -> list[Request]:
    """So many different requests of a kind, drawn without replacement, three in four on a plain background.

    The same arguments give the same requests. Raises UsageError for a kind that there is not, and where a split
    has fewer requests than are asked for.
    """
    import numpy as np

    if kind not in KINDS:
        raise UsageError(
            f"the wardrobe has no requests of kind {kind!r}.{nearest(kind, KINDS)} Known: {', '.join(KINDS)}."
        )
    rng = np.random.default_rng(seed)
    chosen = []
    for split, n in (("train", train), ("test", test)):
        possible = _possible(kind)[split]
        if n > len(possible):
            raise UsageError(
                f"the wardrobe has {len(possible)} {split} requests of kind {kind}, not {n}: ask for fewer, or mix kinds."
            )
        share = np.array([PLAIN if a.pattern == "plain" else (1 - PLAIN) / (len(PATTERNS) - 1) for a in possible])
        picked = rng.choice(len(possible), n, replace=False, p=share / share.sum())
        chosen += [_request(possible[i], split, kind) for i in picked]
    return chosen


def _request(asked: Asked, split: str, kind: str) -> Request:
    prompt, extra = phrase(asked), {"kind": kind}
    return Request(digest(prompt, extra), prompt, split, extra)


@cache
def _possible(kind: str) -> dict[str, list[Asked]]:
    found: dict[str, list[Asked]] = {"train": [], "test": []}
    for test, item, colour, beside, background in _contents(kind):
        found["test" if test else "train"] += [Asked(item, colour, background, p, beside) for p in PATTERNS]
    return found


def _contents(kind: str) -> Iterator[tuple[bool, str, str | None, tuple[str, str] | None, str]]:
    """(held out, item, colour, other piece, background) of everything that the kind can ask for."""
    for item in ITEMS:
        for background in BACKGROUNDS:
            if kind == "full":
                yield from ((held_out_pair(item, c), item, c, None, background) for c in COLOURS)
            elif kind == "open":
                yield held_out(HELD_OUT_CELLS, "cell", item, background), item, None, None, background
            else:
                others = [(other, c) for other, c in outfits(item) if c not in NEUTRAL]
                yield from ((held_out_outfit(item, *o), item, None, o, background) for o in others)
