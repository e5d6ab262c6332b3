"""BlazePose's landmark network on the crop of an annotated box: 33 landmarks in px, and its own 3D landmarks.

Needs `pip install ai-edge-litert` and the .tflite file of assets.py. The crop is a square around the box, not rotated.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from assets import LANDMARKS, find
from PIL import Image

from prefkit.errors import UsageError

SIDE, POINTS = 256, 33
#: numbers per landmark: x, y, z (px of the crop), visibility and presence (logits); 39 are given, 33 of them on the body
VALUES, ALL = 5, 39
#: side of the crop, as a multiple of the box's longer side
MARGIN = 1.25
#: the landmark of each limb joint of the free body
JOINT_LANDMARKS = {
    f"{side}{joint}": first + offset
    for offset, side in enumerate(("Left", "Right"))
    for joint, first in {"Arm": 11, "ForeArm": 13, "Hand": 15, "UpLeg": 23, "Leg": 25, "Foot": 27}.items()
}


@dataclass(frozen=True)
class Landmarks:
    """points [33, 3]: x, y in px of the picture and visibility 0..1; world [33, 3]: metres in camera axes, origin between
    the hips; person: probability 0..1 that the crop shows one."""

    points: np.ndarray
    world: np.ndarray
    person: float


def crop_square(box: np.ndarray) -> tuple[float, float, float]:
    """Return left, top and side (px) of the square around a box (x, y, w, h)."""
    x, y, w, h = (float(v) for v in box)
    side = MARGIN * max(w, h)
    return x + w / 2 - side / 2, y + h / 2 - side / 2, side


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(logits, -60, 60)))


class BlazePose:
    """The landmark network, on one CPU thread. cache: a folder of assets.py. Raises UsageError if a part is missing."""

    def __init__(self, cache: Path) -> None:
        path = find(cache, [LANDMARKS])[LANDMARKS]
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise UsageError("BlazePose needs the package ai-edge-litert. Run: pip install ai-edge-litert") from error
        self.net: Any = Interpreter(model_path=str(path), num_threads=1)
        self.net.allocate_tensors()
        self.input = self.net.get_input_details()[0]["index"]
        # the order of the outputs is not documented; their sizes are distinct
        self.outputs = {int(np.prod(one["shape"])): one["index"] for one in self.net.get_output_details()}

    def __call__(self, picture: Image.Image, box: np.ndarray) -> Landmarks:
        """Detect the person in a box (x, y, w, h px) of a picture."""
        left, top, side = crop_square(box)
        scale = side / SIDE
        crop = picture.transform(
            (SIDE, SIDE), Image.Transform.AFFINE, (scale, 0, left, 0, scale, top), Image.Resampling.BILINEAR
        )
        self.net.set_tensor(self.input, np.asarray(crop, np.float32)[None] / 255)
        self.net.invoke()
        values = self._output(ALL * VALUES).reshape(ALL, VALUES)[:POINTS]
        points = np.c_[values[:, :2] * scale + (left, top), sigmoid(values[:, 3])]
        return Landmarks(points, self._output(ALL * 3).reshape(ALL, 3)[:POINTS], float(self._output(1)[0]))

    def _output(self, size: int) -> np.ndarray:
        return self.net.get_tensor(self.outputs[size]).reshape(-1).astype(np.float64)
