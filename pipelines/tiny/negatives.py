"""Captions that are false for an image, as contrastive negatives: one attribute exchanged, or the bare item names."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from prefkit.tiny.captions import Asked, held_out_outfit, held_out_pair, phrase
from prefkit.tiny.domain import BACKGROUNDS, COLOURS, ITEMS, PATTERNS, Scene

CHOICES = {"item": list(ITEMS), "colour": list(COLOURS), "background": list(BACKGROUNDS), "pattern": list(PATTERNS)}
NAMES = [phrase(Asked(item)) for item in ITEMS]
BOUND = [phrase(Asked(item, colour)) for item in ITEMS for colour in COLOURS if not held_out_pair(item, colour)]


def true_of(wanted: Asked, scene: Scene) -> bool:
    """True if an image of the scene matches the caption."""
    given = {name: getattr(wanted, name) for name in CHOICES}
    return all(value is None or value == getattr(scene, name) for name, value in given.items())


def never_true(wanted: Asked) -> bool:
    """True if the caption is held out. As a negative it would be false for every image, so the model would avoid it."""
    pair = wanted.colour is not None and held_out_pair(wanted.item, wanted.colour)
    return pair or (wanted.beside is not None and held_out_outfit(wanted.item, *wanted.beside))


def exchanged(wanted: Asked, scene: Scene, draw: np.random.Generator) -> list[str]:
    """Return four captions that are false for the scene: with the item, colour, background or pattern exchanged.

    For an attribute that the caption does not name, the item is exchanged instead. In an outfit caption, the item is in
    half of the cases exchanged with the piece that it should go with.
    """
    captions = []
    for name in CHOICES:
        target = name if getattr(wanted, name) is not None else "item"
        others = [replace(wanted, **{target: c}) for c in CHOICES[target] if c != getattr(scene, target)]
        if target == "item" and wanted.beside and wanted.beside[0] != scene.item and draw.random() < 0.5:
            others = [replace(wanted, item=wanted.beside[0], beside=(scene.item, wanted.beside[1]))]
        possible = [other for other in others if not never_true(other)] or others
        captions.append(phrase(possible[draw.integers(len(possible))]))
    return captions
