"""People found by BlazePose: their number, the visible joints of one, or the fraction of the image that they cover.

    count    number of people that the detector finds with a score of at least `confidence`, without overlaps
    visible  fraction of the 33 landmarks of one person, the one with the highest score, that are within the image and
             have a visibility of at least 0.5
    share    fraction of the image that people cover: union of the landmark network's masks, on a 128 x 128 grid

`measure` selects the value. The other two numbers and `score`, the detector's highest score, are aspects. All are 0 if
no person is found. A high value does not mean correct anatomy: the landmark network still reports a person with a
confidence of 0.99 if the halves of the body are swapped, and of 1.00 if the legs are missing. The detector may miss
people who fill only a small part of the image.

The networks are those of MediaPipe. `models` is a folder with pose_detection.tflite and pose_landmark_full.tflite, which
pipelines/mesh/assets.py takes from the wheel of mediapipe 0.10.21. mediapipe itself need not be installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from prefkit.config.shipped import FOLDERS
from prefkit.errors import UsageError
from prefkit.output import shell_quoted
from prefkit.score.embed.packaged import installed
from prefkit.score.embed.weights import verified_as
from prefkit.types import Candidate, Score, ScorerSpec

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

VISIBLE = 0.5
VERIFIED = {
    "BlazePose full, mediapipe 0.10.21": (
        "9ba9dd3d42efaaba86b4ff0122b06f29c4122e756b329d89dca1e297fd8f866c",
        "e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
    )
}


@dataclass(frozen=True)
class PersonOptions:
    #: folder with both .tflite networks, made by pipelines/mesh/assets.py FOLDER --networks
    models: str = ""
    #: count (number of people) | visible (fraction of visible landmarks) | share (fraction of the image covered)
    measure: Literal["count", "visible", "share"] = "count"
    #: minimum score of the detector for a person to count
    confidence: float = 0.5


class Person:
    Options = PersonOptions
    requires = frozenset({"image"})
    scope = "absolute"

    def __init__(self, options: PersonOptions) -> None:
        if not 0 < options.confidence < 1:
            raise UsageError(f"person: confidence is {options.confidence:g}; it must be between 0 and 1.")
        self.options = options

    def spec(self) -> ScorerSpec:
        """Raises UsageError if the package or a file is missing."""
        from prefkit.models.load.revision import weights_revision

        files = self.files()
        return ScorerSpec(
            "person",
            "1",
            weights=f"BlazePose: {', '.join(file.name for file in files)}",
            revision=" ".join(weights_revision(file) for file in files),
            preprocessing="RGB, padded to a square of 224 px; person, upright, 256 px",
            formula=f"{self.options.measure}, confidence {self.options.confidence:g}",
            range=(0.0, None if self.options.measure == "count" else 1.0),
            licence="Apache-2.0",
            verified=verified_as(VERIFIED, files),
        )

    def files(self) -> list[Path]:
        """Return the paths of the two networks. Raises UsageError if a file or the package to run them is missing."""
        from prefkit.score.embed.blazepose import DETECTION, LANDMARKS, PACKAGE

        installed("person", PACKAGE)
        folder = Path(self.options.models).expanduser()
        missing = [name for name in (DETECTION, LANDMARKS) if not (folder / name).is_file()]
        if missing or not self.options.models:
            fault = (
                f"{folder} does not contain {' or '.join(missing)}" if self.options.models else "`models` is not set"
            )
            script = next((path for f in FOLDERS if (path := f / "mesh" / "assets.py").is_file()), "assets.py")
            command = f"python {shell_quoted(script)} {shell_quoted(self.options.models or 'FOLDER')} --networks"
            raise UsageError(f"person: {fault}. Run: {command}, and set `models` to that folder.")
        return [folder / DETECTION, folder / LANDMARKS]

    def load(self, device: str, dtype: str) -> None:
        """Raises UsageError if the package or a file is missing, or a file cannot be read. The networks run on the CPU."""
        from prefkit.score.embed.blazepose import Detector, LandmarkNetwork

        detection, landmarks = self.files()
        self.detect, self.landmarks = Detector(detection), LandmarkNetwork(landmarks)

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        return [self._score(c.pil()) for c in batch]

    def _score(self, image: Image) -> Score:
        import numpy as np

        from prefkit.score.embed.blazepose import on_picture, square

        people = self.detect(image, square(np.array([0, 0, *image.size]), 1.0), self.options.confidence)
        poses, masks = [], []
        for person in people:
            poses.append(self.landmarks(image, person.crop()).points)
            masks.append(on_picture(self.landmarks.mask(), person.crop(), image.size))
        values = {
            "count": float(len(people)),
            "visible": visible(poses[0], image.size) if poses else 0.0,
            "share": float(np.any(masks, axis=0).mean()) if masks else 0.0,
            "score": people[0].score if people else 0.0,
        }
        return Score(values.pop(self.options.measure), values)


def visible(points: np.ndarray, size: tuple[int, int]) -> float:
    """Return the fraction of landmarks [33, 3] (x px, y px, visibility) that are visible and inside the image."""
    inside = (points[:, :2] >= 0).all(1) & (points[:, :2] < size).all(1)
    return float((inside & (points[:, 2] >= VISIBLE)).mean())


plugin = Person
