"""Requests for the synthetic wardrobe. Their content decides whether they are in the split `train` or `test`.

full     a red dress on a plain mint background                  test: held-out (item, colour) pairs
open     a dress on a plain mint background                      test: a quarter of the (item, background) pairs
outfit   a handbag to go with a red dress on a plain mint ...    test: held-out outfits

The embedded models were not trained on the held-out pairs and outfits. They were trained on all pairs of `open`: its
split only separates preference tuning from its evaluation. The second item of an outfit (the red dress) is never black,
white or brown, because these colours go with everything.
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
    """Draw `train` requests for training and `test` for testing, all different, three in four on a plain background.

    Equal arguments return equal requests. Raises UsageError for an unknown kind, or for more requests than a split has.
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
                f"the wardrobe has {len(possible)} {split} requests of kind {kind}, not {n}. "
                "Request fewer, or combine kinds."
            )
        weight = np.array([PLAIN if a.pattern == "plain" else (1 - PLAIN) / (len(PATTERNS) - 1) for a in possible])
        for i in rng.choice(len(possible), n, replace=False, p=weight / weight.sum()):
            prompt, extra = phrase(possible[i]), {"kind": kind}
            chosen.append(Request(digest(prompt, extra), prompt, split, extra))
    return chosen


@cache
def _possible(kind: str) -> dict[str, list[Asked]]:
    possible: dict[str, list[Asked]] = {"train": [], "test": []}
    for test, item, colour, beside, background in _contents(kind):
        possible["test" if test else "train"] += [Asked(item, colour, background, p, beside) for p in PATTERNS]
    return possible


def _contents(kind: str) -> Iterator[tuple[bool, str, str | None, tuple[str, str] | None, str]]:
    """Yield (held out, item, colour, second item, background) for every request of the kind."""
    for item in ITEMS:
        for background in BACKGROUNDS:
            if kind == "full":
                yield from ((held_out_pair(item, c), item, c, None, background) for c in COLOURS)
            elif kind == "open":
                yield held_out(HELD_OUT_CELLS, "cell", item, background), item, None, None, background
            else:
                others = [(other, c) for other, c in outfits(item) if c not in NEUTRAL]
                yield from ((held_out_outfit(item, *o), item, None, o, background) for o in others)
