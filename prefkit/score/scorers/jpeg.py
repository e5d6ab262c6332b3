"""Size of the image as a JPEG of quality 95, in kB of 1000 bytes (rewards of DDPO, arXiv 2305.13301, section 5).

`direction: compress` prefers small files (compressibility), `expand` large files (incompressibility). The value is the
size in both cases; only `higher_is_better` differs. The spec has the versions of Pillow and libjpeg, which matter.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from prefkit.types import Candidate, Score, ScorerSpec


@dataclass(frozen=True)
class JpegOptions:
    #: compress: smaller is better; expand: larger is better
    direction: Literal["compress", "expand"] = "compress"
    quality: int = 95


class Jpeg:
    Options = JpegOptions
    requires = frozenset({"image"})
    scope = "absolute"

    def __init__(self, options: JpegOptions) -> None:
        self.options = options

    def spec(self) -> ScorerSpec:
        import PIL
        from PIL import features

        encoder = f"Pillow {PIL.__version__}, libjpeg {features.version('jpg')}"
        return ScorerSpec(
            "jpeg",
            "1",
            preprocessing=f"RGB uint8; {encoder}",
            formula=f"bytes at quality {self.options.quality} / 1000",
            higher_is_better=self.options.direction == "expand",
            range=(0.0, None),
            licence="Apache-2.0",
            verified="no weights",
        )

    def load(self, device: str, dtype: str) -> None:
        """Do nothing: this scorer has no weights."""

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        return [Score(self._kilobytes(c)) for c in batch]

    def _kilobytes(self, candidate: Candidate) -> float:
        buffer = io.BytesIO()
        candidate.pil().save(buffer, "JPEG", quality=self.options.quality)
        return buffer.tell() / 1000


plugin = Jpeg
