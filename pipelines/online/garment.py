"""A reward with a bounding box: the fraction of the garment in the wanted colours, and the garment's position.

The backdrop is the median colour of the image's rim, and the garment is every pixel that differs from it; its box
covers the rows and columns with at least a fraction EDGE of such pixels. The value is the fraction of the garment's
pixels whose nearest colour of the embedded wardrobe is a wanted one, in OKLab; aspects box_left, box_top, box_right,
box_bottom are fractions of the image size, for `online.mask`. An image without a garment is a failed score. This scorer
uses only colours, not shapes; the judge of the training is prefkit/score/scorers/attributes.py, which recognizes both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prefkit.tiny.art import COLOURS, to_oklab
from prefkit.types import Candidate, Score, ScorerSpec

RIM = 3  # width in pixels
AWAY = 0.08  # OKLab distance from the backdrop
EDGE = 0.08  # fraction of a row or column
LEAST = 0.02  # smallest garment, as a fraction of the image


@dataclass(frozen=True)
class GarmentOptions:
    #: wanted colours, from the colours of the embedded wardrobe
    wanted: tuple[str, ...] = ("red", "pink", "purple")


class Garment:
    Options = GarmentOptions
    requires = frozenset({"image"})
    scope = "absolute"

    def __init__(self, options: GarmentOptions) -> None:
        self.options = options

    def spec(self) -> ScorerSpec:
        formula = f"share of the garment in {', '.join(self.options.wanted)}"
        return ScorerSpec("garment", "1", formula=formula, range=(0.0, 1.0), licence="Apache-2.0")

    def load(self, device: str, dtype: str) -> None:
        """Do nothing: there are no weights."""

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        return [self._one(to_oklab(np.asarray(c.pil().convert("RGB")))) for c in batch]

    def _one(self, lab: np.ndarray) -> Score:
        """Score one image, given in OKLab [H, W, 3]."""
        there = garment(lab)
        box = box_of(there)
        if box is None:
            return Score(None, error="no garment differs enough from the backdrop")
        targets = to_oklab(np.array(list(COLOURS.values())))
        nearest = np.linalg.norm(lab[there][:, None] - targets, axis=-1).argmin(1)
        wanted = [list(COLOURS).index(name) for name in self.options.wanted]
        names = ("box_left", "box_top", "box_right", "box_bottom")
        return Score(float(np.isin(nearest, wanted).mean()), dict(zip(names, box, strict=True)))


def garment(lab: np.ndarray) -> np.ndarray:
    """Return a mask [H, W] of the pixels that differ from the backdrop, given the image in OKLab [H, W, 3]."""
    rim = np.ones(lab.shape[:2], bool)
    rim[RIM:-RIM, RIM:-RIM] = False
    return np.linalg.norm(lab - np.median(lab[rim], axis=0), axis=-1) > AWAY


def box_of(there: np.ndarray) -> tuple[float, float, float, float] | None:
    """Return (left, top, right, bottom) as fractions of the image size, or None if the garment is too small."""
    columns, rows = np.flatnonzero(there.mean(0) >= EDGE), np.flatnonzero(there.mean(1) >= EDGE)
    if there.mean() < LEAST or not len(columns) or not len(rows):
        return None
    height, width = there.shape
    return columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height
