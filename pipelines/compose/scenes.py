"""Compose wardrobe scenes whose garments, colours and boxes are known: 96 x 96 RGB, one garment alone 64 x 64.

A garment is a sprite of prefkit/tiny with its shadow. Garments do not overlap, and a box is the smallest box around the
opaque part of a garment, without its shadow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from prefkit.tiny.art import recolour
from prefkit.tiny.domain import BACKGROUNDS, COLOURS, ITEMS, PATTERNS
from prefkit.tiny.scene import SHADOW, backdrop, place, shadow

SIZE, SIZE_ALONE = 96, 64
LONG_SIDE = (24.0, 36.0)  # px of a garment among others
LONG_SIDE_ALONE = (42.5, 49.5)  # as in prefkit/tiny/scene.py
MARGIN, GAP = 2, 4  # px between a garment and the border, and between two garments
TRIES = 50
#: relation -> direction of the first garment, seen from the second
DIRECTIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
SPREAD = 20  # degrees between the direction and the line between the centres, at most

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Garment:
    """A garment in a scene. box: left, top, right, bottom in px; right and bottom are outside the garment."""

    item: str
    colour: str
    box: Box


def anything(rng: np.random.Generator) -> tuple[str, str]:
    """Draw an item and a colour."""
    return str(rng.choice(list(ITEMS))), str(rng.choice(list(COLOURS)))


def compose(
    rng: np.random.Generator, wanted: list[tuple[str, str]], relation: str | None = None
) -> tuple[Image.Image, list[Garment]]:
    """Compose a scene of the wanted (item, colour) garments on a random background, three in four without a pattern.

    relation: the direction of the first garment, seen from the second; without a relation, places are random.
    """
    size, sides = (SIZE_ALONE, LONG_SIDE_ALONE) if len(wanted) == 1 else (SIZE, LONG_SIDE)
    while True:
        pieces = [place(recolour(*garment), rng.uniform(*sides), rng.uniform(-5, 5)) for garment in wanted]
        inner = [_opaque(piece) for piece in pieces]
        boxes = _places(rng, inner, size, relation)
        if boxes is not None:
            break
    pattern = "plain" if rng.random() < 0.75 else str(rng.choice(PATTERNS[1:]))
    ground = np.tile(backdrop(str(rng.choice(list(BACKGROUNDS))), pattern), (2, 2, 1))[:size, :size]
    scene = Image.fromarray(ground)
    for piece, (left, top, *_), (x, y, *_) in zip(pieces, boxes, inner):
        scene.paste(SHADOW, (left - x + 1, top - y + 2), shadow(piece))
        scene.paste(piece, (left - x, top - y), piece)
    return scene, [Garment(item, colour, box) for (item, colour), box in zip(wanted, boxes)]


def _opaque(piece: Image.Image) -> Box:
    box = piece.getchannel("A").point(lambda a: 255 * (a > 127)).getbbox()
    assert box is not None
    return box


def _places(rng: np.random.Generator, inner: list[Box], size: int, relation: str | None) -> list[Box] | None:
    """Return places without overlap for boxes of these sizes; None if TRIES draws find no place for one of them."""
    boxes: list[Box] = []
    for left, top, right, bottom in inner:
        width, height = right - left, bottom - top
        highest = (size - MARGIN - width, size - MARGIN - height)
        for x, y in rng.integers(MARGIN, highest, (TRIES, 2), endpoint=True).tolist():
            box = (x, y, x + width, y + height)
            fits = not any(_touch(box, other) for other in boxes)
            if fits and (relation is None or not boxes or _in_direction(boxes[0], box, relation)):
                boxes.append(box)
                break
        else:
            return None
    return boxes


def _touch(a: Box, b: Box) -> bool:
    return a[0] < b[2] + GAP and b[0] < a[2] + GAP and a[1] < b[3] + GAP and b[1] < a[3] + GAP


def _in_direction(box: Box, other: Box, relation: str) -> bool:
    offset = [(box[i] + box[i + 2] - other[i] - other[i + 2]) / 2 for i in (0, 1)]
    along = offset[0] * DIRECTIONS[relation][0] + offset[1] * DIRECTIONS[relation][1]
    return along > math.cos(math.radians(SPREAD)) * math.hypot(*offset)
