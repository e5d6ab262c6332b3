"""SciScore: agreement of the image with the scientific outcome of its prompt (Li et al., arXiv 2504.13129, Science-T2I).

    value = exp(logit_scale) * cos(image, implicit prompt)

The model is a CLIP-H tuned on images that obey or break a law of nature. The implicit prompt does not name the outcome
("an iron nail after a month in the rain"). If the requests' prompts name it, set `text` to the column with the implicit
prompts. As published, images go through the processor of transformers, whose centre crop floors half pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefkit.score.embed.encoder import CosineScorer, Encoder
from prefkit.score.licence import with_licence_of
from prefkit.types import Candidate, ScorerSpec

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SciscoreOptions:
    #: folder or Hub id of the tuned CLIP
    model: str = "Jialuo21/SciScore"
    #: Hub revision (branch, tag or commit) of the model
    revision: str | None = None
    #: folder or Hub id of tokenizer and image processor; null = the model's own
    processor: str | None = None
    #: column of the requests with the implicit prompt
    text: str = "prompt"


class Sciscore(CosineScorer):
    Options = SciscoreOptions

    def __init__(self, options: SciscoreOptions) -> None:
        self.options = options
        self.requires = frozenset({"image", options.text})
        self.encoder = Encoder(
            options.model, library="transformers", processor=options.processor, revision=options.revision
        )

    def spec(self) -> ScorerSpec:
        spec = ScorerSpec(
            "sciscore",
            "1",
            weights=self.encoder.weights(),
            revision=self.encoder.revision(),
            preprocessing=f"{self.encoder.preprocessing()}; text of {self.options.text} cut at the context length",
            formula="exp(logit_scale) * cos(image, implicit prompt)",
            licence="Apache-2.0",
        )
        return with_licence_of(spec, self.options.model, SciscoreOptions.model)

    def text(self, candidate: Candidate) -> str:
        return candidate.prompt if self.options.text == "prompt" else str(candidate.extra[self.options.text])

    def scaled(self, cosines: Tensor) -> Tensor:
        return self.encoder.scale * cosines


plugin = Sciscore
