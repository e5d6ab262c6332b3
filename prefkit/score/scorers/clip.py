"""Agreement of image and prompt according to any CLIP model: the cosine, or a published scaling of the cosine.

`library: open_clip` uses open_clip's own transform, whose centre crop rounds half pixels, as OpenAI's does.
`library: transformers` uses the model's own processor, whose crop floors them. Images are converted to RGB first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from prefkit.score.embed.encoder import CosineScorer, Encoder
from prefkit.types import Candidate, ScorerSpec

if TYPE_CHECKING:
    from torch import Tensor

FORMULAS = {
    "cosine": "cos(image, text)",
    "logit": "exp(logit_scale) * cos(image, text)",
    "clipscore": "2.5 * max(cos(image, text), 0)",  # Hessel et al., arXiv 2104.08718, eq. 1
}


@dataclass(frozen=True)
class ClipOptions:
    #: open_clip architecture, local-dir:FOLDER, hf-hub:owner/name, or tiny (embedded); transformers: folder or Hub id
    model: str = "ViT-B-32"
    #: Hub revision (branch, tag or commit) of the model
    revision: str | None = None
    #: open_clip tag or path of a checkpoint; not used with local-dir, hf-hub, tiny and transformers
    pretrained: str | None = "laion2b_s34b_b79k"
    #: library that loads the weights
    library: Literal["open_clip", "transformers"] = "open_clip"
    #: cosine | logit (times exp(logit_scale)) | clipscore (2.5 max(cos, 0))
    scaling: Literal["cosine", "logit", "clipscore"] = "cosine"
    #: text in front of every prompt (published for clipscore: "A photo depicts ")
    prefix: str = ""


class Clip(CosineScorer):
    Options = ClipOptions

    def __init__(self, options: ClipOptions) -> None:
        self.options = options
        self.encoder = Encoder(options.model, options.pretrained, library=options.library, revision=options.revision)

    def spec(self) -> ScorerSpec:
        return ScorerSpec(
            "clip",
            "1",
            weights=self.encoder.weights(),
            revision=self.encoder.revision(),
            preprocessing=self.encoder.preprocessing()
            + f"; prefix {self.options.prefix!r}" * bool(self.options.prefix),
            formula=FORMULAS[self.options.scaling],
            range={"cosine": (-1.0, 1.0), "logit": (None, None), "clipscore": (0.0, 2.5)}[self.options.scaling],
            licence="that of the weights",
        )

    def text(self, candidate: Candidate) -> str:
        return self.options.prefix + candidate.prompt

    def scaled(self, cosines: Tensor) -> Tensor:
        if self.options.scaling == "logit":
            return self.encoder.scale * cosines
        return 2.5 * cosines.clamp(min=0) if self.options.scaling == "clipscore" else cosines


plugin = Clip
