"""The box of a picture's subject, as the mask of `oft`: what differs from the backdrop (pipelines/online/garment.py).

    score: {box: {use: "pipelines/science/box.py:Box"}}
    train: {oft: {online: {mask: box}}}

The value is the fraction of the picture that the box covers. A picture without a subject has the whole picture as its box, as
published. For real models, `grounding_dino` finds the box of the subject's name.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prefkit.tiny.art import to_oklab
from prefkit.types import Candidate, Score, ScorerSpec

sys.path.append(str(Path(__file__).parents[1] / "online"))
from garment import box_of, garment

WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class BoxOptions:
    #: added to the box's width and height, as fractions of the picture
    margin: float = 0.1


class Box:
    Options = BoxOptions
    requires = frozenset({"image"})
    scope = "absolute"

    def __init__(self, options: BoxOptions) -> None:
        self.options = options

    def spec(self) -> ScorerSpec:
        """Evaluation only: a large box is not a better picture."""
        return ScorerSpec(
            "box",
            "1",
            formula=f"area of the subject's box, margin {self.options.margin:g}",
            range=(0.0, 1.0),
            licence="Apache-2.0",
            evaluation_only=True,
        )

    def load(self, device: str, dtype: str) -> None:
        """Do nothing: there are no weights."""

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        return [self._one(to_oklab(np.asarray(candidate.pil().convert("RGB")))) for candidate in batch]

    def _one(self, lab: np.ndarray) -> Score:
        """Return the box of a picture in OKLab [H, W, 3]."""
        more = self.options.margin / 2
        left, top, right, bottom = box_of(garment(lab)) or WHOLE
        box = max(left - more, 0.0), max(top - more, 0.0), min(right + more, 1.0), min(bottom + more, 1.0)
        names = ("box_left", "box_top", "box_right", "box_bottom")
        return Score((box[2] - box[0]) * (box[3] - box[1]), dict(zip(names, map(float, box), strict=True)))
