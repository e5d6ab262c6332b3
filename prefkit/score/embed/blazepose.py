"""BlazePose, run with ai-edge-litert: a detector of people, and a network for one person's 33 landmarks and mask.

Formats and constants are those of MediaPipe's graphs pose_detection and pose_landmark.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefkit.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

PACKAGE = "ai-edge-litert"
DETECTION, LANDMARKS = "pose_detection.tflite", "pose_landmark_full.tflite"
#: number of body landmarks; values per landmark: x, y, z (px of the crop), visibility and presence (logits); number of
#: landmarks that the network returns, including auxiliary ones
POINTS, VALUES, ALL = 33, 5, 39
#: side of the networks' square inputs in px
LANDMARK_SIDE, DETECTION_SIDE = 256, 224
#: side of the landmark network's crop, as a multiple of the box's longer side or of the detector circle's diameter
MARGIN = 1.25
#: cells per side of the detector's grids, and anchors per cell
GRIDS = ((28, 2), (14, 2), (7, 6))
ANCHORS, BOX_VALUES = 2254, 12
#: if the intersection over union of two boxes is larger, the box with the lower score is dropped
OVERLAP = 0.3


@dataclass(frozen=True)
class Crop:
    """A square part of a picture: centre [2] and side in px, rotated clockwise by `angle` radians."""

    centre: np.ndarray
    side: float
    angle: float = 0.0

    def matrix(self, size: int) -> np.ndarray:
        """Return the affine map [2, 3] from pixels of the crop, resized to `size` px, to pixels of the picture."""
        c, s = np.cos(self.angle) * self.side / size, np.sin(self.angle) * self.side / size
        turn = np.array([[c, -s], [s, c]])
        return np.c_[turn, self.centre - turn @ (size / 2, size / 2)]

    def cut(self, picture: Image, size: int) -> np.ndarray:
        """Return the crop [size, size, 3], 0..255 float32."""
        from PIL import Image as pillow

        values = tuple(self.matrix(size).ravel())
        crop = picture.transform((size, size), pillow.Transform.AFFINE, values, pillow.Resampling.BILINEAR)
        return np.asarray(crop, np.float32)


def square(box: np.ndarray, margin: float) -> Crop:
    """Return the square around a box (x, y, w, h px) whose side is `margin` times the longer side."""
    x, y, w, h = (float(v) for v in box)
    return Crop(np.array([x + w / 2, y + h / 2]), margin * max(w, h))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(logits, -60, 60)))


class Network:
    """A .tflite network on one CPU thread. `output` selects an output by its shape; all outputs differ in size."""

    def __init__(self, path: Path, side: int) -> None:
        """Load a network with an input of `side` x `side` px. Raises UsageError for any other file."""
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise UsageError(f"{path.name} needs the package {PACKAGE}. Run: pip install {PACKAGE}") from error
        try:
            self.net: Any = Interpreter(model_path=str(path), num_threads=1)
            self.net.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise UsageError(f"{path} could not be read as a .tflite network: {error}") from error
        first = self.net.get_input_details()[0]
        if (shape := [int(n) for n in first["shape"]]) != [1, side, side, 3]:
            raise UsageError(
                f"{path} is not the network of this name: its input has the shape {shape} instead of {[1, side, side, 3]}. "
                "Make the folder again: python pipelines/mesh/assets.py FOLDER --networks"
            )
        self.input = first["index"]
        self.outputs = {int(np.prod(one["shape"])): one["index"] for one in self.net.get_output_details()}

    def run(self, image: np.ndarray) -> None:
        self.net.set_tensor(self.input, image[None])
        self.net.invoke()

    def output(self, *shape: int) -> np.ndarray:
        """Return the last run's output of this shape, as float64."""
        return self.net.get_tensor(self.outputs[int(np.prod(shape))]).reshape(shape).astype(np.float64)


def anchors() -> np.ndarray:
    """Return the centres (x, y) of the detector's anchors [2254, 2], as fractions of the input's side."""
    grids = [np.stack(np.meshgrid(*[(np.arange(n) + 0.5) / n] * 2), -1).reshape(-1, 2).repeat(k, 0) for n, k in GRIDS]
    return np.concatenate(grids)


@dataclass(frozen=True)
class Person:
    """A detected person, in px of the picture.

    box    [4] left, top, right and bottom of the head
    hips   [2] midpoint of the hips
    top    [2] a point above the head on the body's axis
    score  confidence of the detector, 0..1
    """

    box: np.ndarray
    hips: np.ndarray
    top: np.ndarray
    score: float

    @property
    def angle(self) -> float:
        """Clockwise angle of the body from upright, radians."""
        return float(np.arctan2(self.top[0] - self.hips[0], self.hips[1] - self.top[1]))

    def crop(self) -> Crop:
        """Return the landmark network's crop: `MARGIN` times as wide as a circle around the hips through `top`."""
        return Crop(self.hips, 2 * MARGIN * max(float(np.linalg.norm(self.top - self.hips)), 1.0), self.angle)


class Detector:
    """Detector of people in a square part of a picture."""

    def __init__(self, path: Path) -> None:
        self.net, self.anchors = Network(path, DETECTION_SIDE), anchors()

    def __call__(self, picture: Image, crop: Crop, confidence: float) -> list[Person]:
        """Return the people in an upright crop with a score of at least `confidence`, best first, without overlaps."""
        import torch
        from torchvision.ops import nms

        self.net.run(crop.cut(picture, DETECTION_SIDE) / 127.5 - 1)
        scores = sigmoid(self.net.output(ANCHORS))
        found = np.flatnonzero(scores >= confidence)
        values = self.net.output(ANCHORS, BOX_VALUES)[found].reshape(-1, 6, 2) / DETECTION_SIDE
        centre, half, points = (
            values[:, 0] + self.anchors[found],
            values[:, 1] / 2,
            values[:, 2:4] + self.anchors[found, None],
        )
        corner = crop.centre - crop.side / 2
        boxes = np.concatenate([centre - half, centre + half], 1) * crop.side + np.tile(corner, 2)
        points = points * crop.side + corner
        kept = nms(torch.from_numpy(boxes), torch.from_numpy(scores[found]), OVERLAP).tolist()
        return [Person(boxes[i], points[i, 0], points[i, 1], float(scores[found[i]])) for i in kept]


@dataclass(frozen=True)
class Landmarks:
    """Landmarks of one person.

    points  [33, 3] x and y in px of the picture, and visibility 0..1
    world   [33, 3] metres in camera axes, with the origin between the hips
    person  probability 0..1 that the crop shows a person
    """

    points: np.ndarray
    world: np.ndarray
    person: float


class LandmarkNetwork:
    """Landmark network for a square part of a picture, rotated so that the body is upright."""

    def __init__(self, path: Path) -> None:
        self.net = Network(path, LANDMARK_SIDE)

    def __call__(self, picture: Image, crop: Crop) -> Landmarks:
        """Return the landmarks of the person in a crop."""
        self.net.run(crop.cut(picture, LANDMARK_SIDE) / 255)
        values = self.net.output(ALL, VALUES)[:POINTS]
        matrix = crop.matrix(LANDMARK_SIDE)
        points = np.c_[values[:, :2] @ matrix[:, :2].T + matrix[:, 2], sigmoid(values[:, 3])]
        world = self.net.output(ALL, 3)[:POINTS]
        c, s = np.cos(crop.angle), np.sin(crop.angle)
        world[:, :2] = world[:, :2] @ np.array([[c, s], [-s, c]])
        return Landmarks(points, world, float(self.net.output(1)[0]))

    def mask(self) -> np.ndarray:
        """Return the mask [256, 256], bool, of the person in the crop of the last call."""
        return self.net.output(LANDMARK_SIDE, LANDMARK_SIDE) > 0  # logits


def on_picture(mask: np.ndarray, crop: Crop, size: tuple[int, int], cells: int = 128) -> np.ndarray:
    """Resample a crop's mask to the whole picture: bool [cells, cells], False outside of the crop.

    size: width and height of the picture in px. cells: number of cells in both directions.
    """
    centres = (np.stack(np.meshgrid(*[np.arange(cells)] * 2), -1) + 0.5) / cells * size
    matrix = crop.matrix(len(mask))
    places = np.floor((centres - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T).astype(int)
    inside = ((places >= 0) & (places < len(mask))).all(-1)
    x, y = np.moveaxis(places.clip(0, len(mask) - 1), -1, 0)
    return inside & mask[y, x]
