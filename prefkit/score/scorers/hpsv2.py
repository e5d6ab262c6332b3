"""Human Preference Score v2 and v2.1 (Wu et al., arXiv 2306.09341): cosine similarity in a CLIP-H tuned on HPDv2.

    value = cos(image, prompt)

Values are mostly between 0.14 and 0.34; the published tables multiply them by 100. The longest side is resized to 224
with Pillow, and the rest is padded with black, so nothing is cropped. The original code resizes a tensor, which
torchvision antialiases only since version 0.17, so its values depend on the version of torchvision. The original code
fails on images that are not RGB; prefkit converts them first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prefkit.score.embed.encoder import CosineScorer, Encoder
from prefkit.score.licence import with_licence_of
from prefkit.types import ScorerSpec

HUB = "xswu/HPSv2"
FILES = {"2.0": "HPS_v2_compressed.pt", "2.1": "HPS_v2.1_compressed.pt"}


@dataclass(frozen=True)
class Hpsv2Options:
    #: 2.0 | 2.1
    version: Literal["2.0", "2.1"] = "2.1"
    #: checkpoint file, a folder that contains it under its published name, or a Hub id
    checkpoint: str = HUB
    #: open_clip architecture of the checkpoint
    model: str = "ViT-H-14"


class Hpsv2(CosineScorer):
    Options = Hpsv2Options

    def __init__(self, options: Hpsv2Options) -> None:
        self.options, self.file = options, FILES[options.version]

    def spec(self) -> ScorerSpec:
        from prefkit.score.embed.weights import file_revision

        spec = ScorerSpec(
            "hpsv2",
            "1",
            weights=f"{self.options.checkpoint} v{self.options.version} {self.options.model}",
            revision=file_revision(self.options.checkpoint, self.file),
            preprocessing="RGB; longest side to the model's size, bicubic (Pillow), padded with black",
            formula="cos(image, prompt)",
            range=(-1.0, 1.0),
            licence="Apache-2.0",
        )
        return with_licence_of(spec, self.options.checkpoint, Hpsv2Options.checkpoint)

    def load(self, device: str, dtype: str) -> None:
        """Raises UsageError if the checkpoint is missing or has another architecture."""
        from prefkit.score.embed.weights import weights_file

        path = weights_file(self.options.checkpoint, self.file)
        self.encoder = Encoder(self.options.model, str(path), resize="longest")
        super().load(device, dtype)


plugin = Hpsv2
