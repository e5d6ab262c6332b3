"""PickScore: the preference of Pick-a-Pic's users for an image, given its prompt (Kirstain et al., arXiv 2305.01569).

    value = exp(logit_scale) * cos(image, prompt)

The model is a CLIP-H tuned on these users' choices; values are mostly between 16 and 26. The published probability of a
choice is the softmax of the values over the candidates of one prompt, which `pair` computes. As published, images
go through the processor of transformers, whose centre crop floors half pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefkit.score.embed.encoder import CosineScorer, Encoder
from prefkit.score.licence import with_licence_of
from prefkit.types import ScorerSpec

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PickscoreOptions:
    #: folder or Hub id of the tuned CLIP
    model: str = "yuvalkirstain/PickScore_v1"
    #: Hub revision (branch, tag or commit) of the model
    revision: str | None = None
    #: folder or Hub id of tokenizer and image processor
    processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


class Pickscore(CosineScorer):
    Options = PickscoreOptions

    def __init__(self, options: PickscoreOptions) -> None:
        self.options = options
        self.encoder = Encoder(
            options.model, library="transformers", processor=options.processor, revision=options.revision
        )

    def spec(self) -> ScorerSpec:
        spec = ScorerSpec(
            "pickscore",
            "1",
            weights=self.encoder.weights(),
            revision=self.encoder.revision(),
            preprocessing=f"{self.encoder.preprocessing()}; prompt cut at the context length",
            formula="exp(logit_scale) * cos(image, prompt)",
            licence="MIT",
        )
        return with_licence_of(spec, self.options.model, PickscoreOptions.model)

    def scaled(self, cosines: Tensor) -> Tensor:
        return self.encoder.scale * cosines


plugin = Pickscore
