"""BlazePose on the crop of an annotated box: 33 landmarks in px, and its own 3D landmarks.

The box gives the crop's position and size. BlazePose's person detector, run on the box, gives the crop's rotation, because
the landmark network expects an upright body: without this rotation, the PA-MPJPE of its 3D landmarks is 40 % larger on clean
pictures (200 instead of 143 mm on procedural poses, 147 instead of 107 mm on motion; 80 pictures each).
Needs `pip install ai-edge-litert` and the .tflite files of assets.py. Formats: MediaPipe's pose_detection and
pose_landmark graphs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from assets import find
from PIL import Image

from prefkit.score.embed.blazepose import (
    DETECTION,
    LANDMARKS,
    MARGIN,
    Crop,
    Detector,
    LandmarkNetwork,
    Landmarks,
    square,
)

#: side of the detector's crop, as a multiple of the box's longer side
DETECTION_MARGIN = 1.5
#: a detection with a lower score does not turn the crop
SURE = 0.3
#: the landmark of each limb joint of the free body
JOINT_LANDMARKS = {
    f"{side}{joint}": first + offset
    for offset, side in enumerate(("Left", "Right"))
    for joint, first in {"Arm": 11, "ForeArm": 13, "Hand": 15, "UpLeg": 23, "Leg": 25, "Foot": 27}.items()
}


class BlazePose:
    """Detector and landmark network. cache: a folder of assets.py. Raises UsageError if a part is missing."""

    def __init__(self, cache: Path) -> None:
        files = find(cache, [DETECTION, LANDMARKS])
        self.detect, self.landmarks = Detector(files[DETECTION]), LandmarkNetwork(files[LANDMARKS])

    def __call__(self, picture: Image.Image, box: np.ndarray) -> Landmarks:
        """Detect the person in a box (x, y, w, h px) of a picture."""
        upright = square(box, MARGIN)
        return self.landmarks(picture, Crop(upright.centre, upright.side, self.angle(picture, box)))

    def angle(self, picture: Image.Image, box: np.ndarray) -> float:
        """Return the clockwise angle from upright of the body in the box, radians; 0 if the detector is unsure."""
        people = self.detect(picture, square(box, DETECTION_MARGIN), SURE)
        return people[0].angle if people else 0.0
