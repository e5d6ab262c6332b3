"""Prompts of the synthetic wardrobe: writing and parsing, training captions, and content held out from training.

    a red dress on a plain mint background            everything specified
    a dress on a plain mint background                any colour
    a red dress                                       any background
    a handbag to go with a red dress [on a ...]       an outfit: the image shows the handbag, in any colour

Plural items have no article (`jeans to go with an orange coat`). A prompt has at most 17 tokens (`t-shirt` has three).
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
NO_COLOUR, NO_BACKGROUND, IN_OUTFIT = 0.25, 0.25, 0.15  # fractions of training captions
PLAIN = 0.75  # fraction of training scenes


@dataclass(frozen=True)
class Asked:
    """The content of a prompt; None: left open by the prompt. beside: (item, colour) of an outfit's second item."""

    item: str
    colour: str | None = None
    background: str | None = None
    pattern: str | None = None
    beside: tuple[str, str] | None = None


def caption(
    scene: Scene, *, colour: bool = True, background: bool = True, beside: tuple[str, str] | None = None
) -> str:
    """Write the prompt of a scene, with or without its colour and its background (including the pattern).

    beside: (item, colour) of an outfit's second item; the prompt then omits the colour of the scene's item.
    """
    named = scene.colour if colour and beside is None else None
    shown, pattern = (scene.background, scene.pattern) if background else (None, None)
    return phrase(Asked(scene.item, named, shown, pattern, beside))


def phrase(asked: Asked) -> str:
    """Write the prompt with this content."""
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
    """Parse a prompt. Raises UsageError for a prompt that the wardrobe's grammar does not allow."""
    match = _GRAMMAR.fullmatch(" ".join(prompt.lower().split()))
    if match is None or (match["colour"] and match["other"]):
        raise UsageError(
            f"{prompt!r} is not a prompt of the wardrobe. Write 'a red dress on a plain mint background', with or "
            "without the colour and the background, or 'a handbag to go with a red dress', with no colour for the "
            f"first item. Items: {', '.join(ITEMS)}. Colours: {', '.join(COLOURS)}. Patterns: "
            f"{', '.join(PATTERNS)}. Backgrounds: {', '.join(BACKGROUNDS)}."
        )
    beside = (match["other"], match["other_colour"]) if match["other"] else None
    return Asked(match["item"], match["colour"], match["background"], match["pattern"], beside)


def held_out(fraction: float, *content: str) -> bool:
    """True if a hash of `content` falls into the held-out fraction."""
    number = int.from_bytes(hashlib.sha256("|".join(("wardrobe 5", *content)).encode()).digest()[:8], "big")
    return number / 2**64 < fraction


@cache
def held_out_pair(item: str, colour: str) -> bool:
    """True if training images never show the item in this colour: 29 of the 240 pairs."""
    return held_out(HELD_OUT_PAIRS, "pair", item, colour)


@cache
def held_out_outfit(item: str, other: str, other_colour: str) -> bool:
    """True if no training caption combines the item with the other item in this colour."""
    return held_out(HELD_OUT_OUTFITS, "outfit", item, other, other_colour)


def outfits(item: str) -> list[tuple[str, str]]:
    """Return every (item, colour) that can be the second item of an outfit: those of another part."""
    return [(other, colour) for other, part in ITEMS.items() if part != ITEMS[item] for colour in COLOURS]


def training_scene(rng: np.random.Generator) -> Scene:
    """Draw a training scene: an (item, colour) that is not held out, any background, in 75 % of scenes no pattern."""
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
    """Draw a training caption of the scene: 25 % omit the colour, 25 % the background, and 15 % are outfits.

    The second item of an outfit is drawn independently of the scene's colour, so that the model learns no colour taste.
    """
    background = bool(rng.random() >= NO_BACKGROUND)
    if rng.random() < IN_OUTFIT:
        others = _training_outfits(scene.item)
        return caption(scene, background=background, beside=others[rng.integers(len(others))])
    return caption(scene, colour=bool(rng.random() >= NO_COLOUR), background=background)


#: tokens of the grammar: runs of letters, and the hyphen of t-shirt
VOCABULARY: list[str] = sorted(
    {
        token
        for text in (*ITEMS, *COLOURS, *BACKGROUNDS, *PATTERNS, "a an to go with on background")
        for token in re.findall(r"[a-z]+|-", text)
    }
)
