"""BlazePose on the crop of an annotated box: 33 landmarks in px, and its own 3D landmarks.

The box gives the crop's position and size. BlazePose's person detector, run on the box, gives the crop's rotation, because
the landmark network expects an upright body: without this rotation, the PA-MPJPE of its 3D landmarks is 40 % larger on clean
pictures (200 instead of 143 mm on procedural poses, 147 instead of 107 mm on motion; 80 pictures each).
Needs `pip install ai-edge-litert` and the .tflite files of assets.py. Formats: MediaPipe's pose_detection and
pose_landmark graphs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from assets import DETECTION, LANDMARKS, find
from PIL import Image

from prefkit.errors import UsageError

#: landmarks of the body; numbers per landmark: x, y, z (px of the crop), visibility and presence (logits); landmarks
#: that the network returns
POINTS, VALUES, ALL = 33, 5, 39
#: side of a network's input in px
LANDMARK_SIDE, DETECTION_SIDE = 256, 224
#: side of the landmark network's crop and of the detector's, as multiples of the box's longer side
MARGIN, DETECTION_MARGIN = 1.25, 1.5
#: a detection with a lower score does not turn the crop
SURE = 0.3
#: cells per side of the detector's grids, and anchors per cell
GRIDS = ((28, 2), (14, 2), (7, 6))
ANCHORS, BOX_VALUES = 2254, 12
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


@dataclass(frozen=True)
class Crop:
    """A square of a picture, turned clockwise by `angle` radians about its centre [2] px."""

    centre: np.ndarray
    side: float
    angle: float = 0.0

    def matrix(self, size: int) -> np.ndarray:
        """Return the affine map [2, 3] from px of the crop, scaled to `size`, to px of the picture."""
        c, s = np.cos(self.angle) * self.side / size, np.sin(self.angle) * self.side / size
        turn = np.array([[c, -s], [s, c]])
        return np.c_[turn, self.centre - turn @ (size / 2, size / 2)]

    def cut(self, picture: Image.Image, size: int) -> np.ndarray:
        """Return the crop [size, size, 3], 0..255 float32."""
        values = tuple(self.matrix(size).ravel())
        crop = picture.transform((size, size), Image.Transform.AFFINE, values, Image.Resampling.BILINEAR)
        return np.asarray(crop, np.float32)


def square(box: np.ndarray, margin: float) -> Crop:
    """Return the square around a box (x, y, w, h px) whose side is `margin` times the longer side."""
    x, y, w, h = (float(v) for v in box)
    return Crop(np.array([x + w / 2, y + h / 2]), margin * max(w, h))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(logits, -60, 60)))


class Network:
    """A .tflite network on one CPU thread. Each output is identified by its size; the sizes are distinct."""

    def __init__(self, path: Path) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise UsageError("BlazePose needs the package ai-edge-litert. Run: pip install ai-edge-litert") from error
        self.net: Any = Interpreter(model_path=str(path), num_threads=1)
        self.net.allocate_tensors()
        self.input = self.net.get_input_details()[0]["index"]
        self.outputs = {int(np.prod(one["shape"])): one["index"] for one in self.net.get_output_details()}

    def run(self, image: np.ndarray) -> None:
        self.net.set_tensor(self.input, image[None])
        self.net.invoke()

    def output(self, *shape: int) -> np.ndarray:
        """Return the last run's output of this shape, as float64."""
        return self.net.get_tensor(self.outputs[int(np.prod(shape))]).reshape(shape).astype(np.float64)


def anchors() -> np.ndarray:
    """Return the centres (x, y) of the detector's anchors [2254, 2], 0..1 of its input."""
    grids = [np.stack(np.meshgrid(*[(np.arange(n) + 0.5) / n] * 2), -1).reshape(-1, 2).repeat(k, 0) for n, k in GRIDS]
    return np.concatenate(grids)


class BlazePose:
    """Detector and landmark network. cache: a folder of assets.py. Raises UsageError if a part is missing."""

    def __init__(self, cache: Path) -> None:
        files = find(cache, [DETECTION, LANDMARKS])
        self.detection, self.landmarks = Network(files[DETECTION]), Network(files[LANDMARKS])
        self.anchors = anchors()

    def __call__(self, picture: Image.Image, box: np.ndarray) -> Landmarks:
        """Detect the person in a box (x, y, w, h px) of a picture."""
        upright = square(box, MARGIN)
        crop = Crop(upright.centre, upright.side, self.angle(picture, box))
        self.landmarks.run(crop.cut(picture, LANDMARK_SIDE) / 255)
        values = self.landmarks.output(ALL, VALUES)[:POINTS]
        matrix = crop.matrix(LANDMARK_SIDE)
        points = np.c_[values[:, :2] @ matrix[:, :2].T + matrix[:, 2], sigmoid(values[:, 3])]
        world = self.landmarks.output(ALL, 3)[:POINTS]
        c, s = np.cos(crop.angle), np.sin(crop.angle)
        world[:, :2] = world[:, :2] @ np.array([[c, s], [-s, c]])
        return Landmarks(points, world, float(self.landmarks.output(1)[0]))

    def angle(self, picture: Image.Image, box: np.ndarray) -> float:
        """Return the clockwise angle from upright of the body in the box, radians; 0 if the detector is unsure."""
        self.detection.run(square(box, DETECTION_MARGIN).cut(picture, DETECTION_SIDE) / 127.5 - 1)
        scores = sigmoid(self.detection.output(ANCHORS))
        best = int(scores.argmax())
        if scores[best] < SURE:
            return 0.0
        # keypoint 0 is the midpoint of the hips, keypoint 1 a point above the head on the body's axis
        hips, top = (
            self.detection.output(ANCHORS, BOX_VALUES)[best, 4:8].reshape(2, 2) / DETECTION_SIDE + self.anchors[best]
        )
        return float(np.arctan2(top[0] - hips[0], hips[1] - top[1]))
