"""The rule of the synthetic world, as functions of colours and as scorers of pictures (evaluation only).

A picture obeys the rule if its colour goes with the colours of all other items of the outfit (prefkit/tiny/rules.py) and is
neither black, white nor brown. These three go with everything, so that a model that sees no outfit could win with them.
Four pictures of an outfit that is wholly blank obey if all four colours are in the user's palette and go with each other;
without the palette, four pictures of one fixed colour would always obey.

    score:
      rule: {use: "pipelines/fashion/rule.py:obeys"}
      palette: {use: "pipelines/fashion/rule.py:in_palette"}
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import prefkit
from prefkit.tiny.captions import asked
from prefkit.tiny.domain import COLOURS
from prefkit.tiny.rules import NEUTRAL, compatible
from prefkit.tiny.truth import Seen, read_many

COLOURED = tuple(colour for colour in COLOURS if colour not in NEUTRAL)


def goes_with(colour: str | None, others: Sequence[str]) -> bool:
    """True if the colour obeys the rule beside the others."""
    return colour in COLOURED and all(compatible(colour, other) for other in others)


def set_obeys(colours: Sequence[str | None], palette: Sequence[str]) -> bool:
    """True if the colours of a whole outfit obey the rule for a user with this palette."""
    if not all(colour in palette for colour in colours):
        return False
    return all(compatible(a, b) for a, b in combinations(colours, 2) if a is not None and b is not None)


@prefkit.scorer(name="rule", version="1", range=(0, 1), evaluation_only=True)
def obeys(images: Sequence[Any], prompts: Sequence[str], colours: Sequence[Sequence[str]]) -> list[float]:
    """1 if the picture shows the item of the prompt in a colour that obeys the rule, else 0."""
    return [
        float(_asked_for(seen, prompt) and goes_with(seen.colour, others))
        for seen, prompt, others in zip(read_many(images), prompts, colours, strict=True)
    ]


@prefkit.scorer(name="palette", version="1", range=(0, 1), evaluation_only=True)
def in_palette(images: Sequence[Any], prompts: Sequence[str], palette: Sequence[Sequence[str]]) -> list[float]:
    """1 if the picture shows the item of the prompt in a colour of the user's palette, else 0."""
    return [
        float(_asked_for(seen, prompt) and seen.colour in liked)
        for seen, prompt, liked in zip(read_many(images), prompts, palette, strict=True)
    ]


def _asked_for(seen: Seen, prompt: str) -> bool:
    return seen.item == asked(prompt).item
