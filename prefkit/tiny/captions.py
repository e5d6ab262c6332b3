"""The language of the wardrobe: scenes to prompts and back, what is held out, and what training says.

    a red dress on a plain mint background            everything named
    a dress on a plain mint background                colour left open
    a red dress                                       background left open
    a handbag to go with a red dress [on a ...]       an outfit: the picture shows the handbag, its colour left open

Words that only come in plural take no article (`jeans to go with an orange coat`). A tokenizer that splits
`t-shirt` in three needs at most 17 tokens.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from prefkit.errors import UsageError
from prefkit.tiny.domain import BACKGROUNDS, COLOURS, ITEMS, PATTERNS, PLURAL, Scene

if TYPE_CHECKING:
    import numpy as np

HELD_OUT_PAIRS = 0.12
HELD_OUT_OUTFITS = 0.15
NO_COLOUR, NO_BACKGROUND, IN_OUTFIT = 0.25, 0.25, 0.15  # shares of training captions
PLAIN = 0.75  # share of training scenes


@dataclass(frozen=True)
class Asked:
    """What a prompt asks for; None where it leaves something open. `beside` is the outfit's other (item, colour)."""

    item: str
    colour: str | None = None
    background: str | None = None
    pattern: str | None = None
    beside: tuple[str, str] | None = None


def caption(
    scene: Scene, *, colour: bool = True, background: bool = True, beside: tuple[str, str] | None = None
) -> str:
    """The prompt that asks for the scene, with the colour or the background (and its pattern) left open.

    beside: (item, colour) of the outfit's other piece; the colour of the scene's own item is then left open.
    """
    shown = colour and beside is None
    return phrase(
        Asked(
            scene.item,
            scene.colour if shown else None,
            scene.background if background else None,
            scene.pattern if background else None,
            beside,
        )
    )


def phrase(asked: Asked) -> str:
    """The one prompt that asks for this."""
    text = _noun(asked.item, asked.colour)
    if asked.beside is not None:
        text += f" to go with {_noun(*asked.beside)}"
    if asked.background is not None:
        text += f" on a {asked.pattern} {asked.background} background"
    return text


def _noun(item: str, colour: str | None) -> str:
    words = f"{colour} {item}" if colour else item
    if item in PLURAL:
        return words
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _any(names: Iterable[str]) -> str:
    return "|".join(sorted(map(re.escape, names), key=len, reverse=True))


_ITEM, _COLOUR = _any(ITEMS), _any(COLOURS)
_GRAMMAR = re.compile(
    rf"(?:an? )?(?:(?P<colour>{_COLOUR}) )?(?P<item>{_ITEM})"
    rf"(?: to go with (?:an? )?(?P<other_colour>{_COLOUR}) (?P<other>{_ITEM}))?"
    rf"(?: on a (?P<pattern>{_any(PATTERNS)}) (?P<background>{_any(BACKGROUNDS)}) background)?"
)


def asked(prompt: str) -> Asked:
    """What the prompt asks for. Raises UsageError for a prompt that the wardrobe's grammar does not have."""
    found = _GRAMMAR.fullmatch(" ".join(prompt.lower().split()))
    if found is None or (found["colour"] and found["other"]):
        raise UsageError(
            f"{prompt!r} is not a prompt of the wardrobe. It reads 'a red dress on a plain mint background', where the "
            "colour or the background may be left out, or 'a handbag to go with a red dress', where the item asked "
            f"for has no colour. Items: {', '.join(ITEMS)}. Colours: {', '.join(COLOURS)}. Patterns: "
            f"{', '.join(PATTERNS)}. Backgrounds: {', '.join(BACKGROUNDS)}."
        )
    beside = (found["other"], found["other_colour"]) if found["other"] else None
    return Asked(found["item"], found["colour"], found["background"], found["pattern"], beside)


def held_out(share: float, *content: str) -> bool:
    """Whether this content is among the share that is held out: always the same answer for the same content."""
    number = int.from_bytes(hashlib.sha256("|".join(("wardrobe 5", *content)).encode()).digest()[:8], "big")
    return number / 2**64 < share


@cache
def held_out_pair(item: str, colour: str) -> bool:
    """Whether the item is never rendered in this colour for training: 29 of the 240 pairs."""
    return held_out(HELD_OUT_PAIRS, "pair", item, colour)


@cache
def held_out_outfit(item: str, other: str, other_colour: str) -> bool:
    """Whether no training caption asks for the item to go with this piece."""
    return held_out(HELD_OUT_OUTFITS, "outfit", item, other, other_colour)


def outfits(item: str) -> list[tuple[str, str]]:
    """Every (other item, its colour) that the item can be asked to go with: all of another part of an outfit."""
    return [(other, colour) for other, part in ITEMS.items() if part != ITEMS[item] for colour in COLOURS]


def training_scene(rng: np.random.Generator) -> Scene:
    """A scene to train on: any (item, colour) that is not held out, any background, 75 % plain."""
    pairs = _training_pairs()
    item, colour = pairs[rng.integers(len(pairs))]
    background = list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
    pattern = "plain" if rng.random() < PLAIN else PATTERNS[1:][rng.integers(len(PATTERNS) - 1)]
    return Scene(item, colour, background, pattern)


@cache
def _training_pairs() -> list[tuple[str, str]]:
    return [(item, colour) for item in ITEMS for colour in COLOURS if not held_out_pair(item, colour)]


@cache
def _training_outfits(item: str) -> list[tuple[str, str]]:
    return [(other, colour) for other, colour in outfits(item) if not held_out_outfit(item, other, colour)]


def training_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption of the scene to train on: colour left out of 25 %, background of 25 %, 15 % outfits.

    The other piece of an outfit is drawn whatever the scene's colour, so that the model learns no taste from it.
    """
    background = bool(rng.random() >= NO_BACKGROUND)
    if rng.random() < IN_OUTFIT:
        others = _training_outfits(scene.item)
        return caption(scene, background=background, beside=others[rng.integers(len(others))])
    return caption(scene, colour=bool(rng.random() >= NO_COLOUR), background=background)


#: every word of the grammar as a tokenizer sees it: runs of letters, and the hyphen of t-shirt
VOCABULARY: list[str] = sorted(
    {
        token
        for text in (*ITEMS, *COLOURS, *BACKGROUNDS, *PATTERNS, "a an to go with on background")
        for token in re.findall(r"[a-z]+|-", text)
    }
)
