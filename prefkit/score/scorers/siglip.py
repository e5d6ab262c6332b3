"""Agreement of image and prompt according to SigLIP or SigLIP 2: the cosine, the logit, or the sigmoid of the logit.

SigLIP is trained to classify each image-text pair on its own (arXiv 2303.15343, eq. 1), so `sigmoid` is a probability
that does not depend on other prompts. Prompts are lower-cased and padded to the full context, as in training. Images
are converted to RGB and stretched to the model's square input, as published, so nothing is cropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from prefkit.score.embed.encoder import CosineScorer, Encoder
from prefkit.score.licence import with_licence_of
from prefkit.types import Candidate, ScorerSpec

if TYPE_CHECKING:
    from torch import Tensor

FORMULAS = {
    "cosine": "cos(image, text)",
    "logit": "exp(logit_scale) * cos(image, text) + logit_bias",
    "sigmoid": "sigmoid(exp(logit_scale) * cos(image, text) + logit_bias)",
}
RANGES: dict[str, tuple[float | None, float | None]] = {
    "cosine": (-1.0, 1.0),
    "logit": (None, None),
    "sigmoid": (0.0, 1.0),
}


@dataclass(frozen=True)
class SiglipOptions:
    #: folder or Hub id; open_clip: architecture, local-dir:FOLDER or hf-hub:owner/name
    model: str = "google/siglip2-so400m-patch14-384"
    #: Hub revision (branch, tag or commit) of the model
    revision: str | None = None
    #: library that loads the weights
    library: Literal["transformers", "open_clip"] = "transformers"
    #: open_clip tag (webli for the published weights) or path of a checkpoint
    pretrained: str | None = None
    #: cosine | logit (times exp(logit_scale) plus logit_bias) | sigmoid of the logit
    scaling: Literal["cosine", "logit", "sigmoid"] = "cosine"


class Siglip(CosineScorer):
    Options = SiglipOptions

    def __init__(self, options: SiglipOptions) -> None:
        self.options = options
        self.encoder = Encoder(options.model, options.pretrained, library=options.library, revision=options.revision)

    def spec(self) -> ScorerSpec:
        spec = ScorerSpec(
            "siglip",
            "1",
            weights=self.encoder.weights(),
            revision=self.encoder.revision(),
            preprocessing=f"{self.encoder.preprocessing()}; prompt in lower case, padded to the context",
            formula=FORMULAS[self.options.scaling],
            range=RANGES[self.options.scaling],
            licence="Apache-2.0",
        )
        return with_licence_of(spec, self.options.model, SiglipOptions.model)

    def text(self, candidate: Candidate) -> str:
        return candidate.prompt.lower()

    def scaled(self, cosines: Tensor) -> Tensor:
        if self.options.scaling == "cosine":
            return cosines
        logits = self.encoder.scale * cosines + self.encoder.bias
        return logits.sigmoid() if self.options.scaling == "sigmoid" else logits


plugin = Siglip
