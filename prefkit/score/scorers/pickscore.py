"""PickScore: the preference of Pick-a-Pic's users for an image, given its prompt (Kirstain et al., arXiv 2305.01569).

    value = exp(logit_scale) * cos(image, prompt)

by CLIP-H tuned on their choices; mostly between 16 and 26. The published probability of a choice is the softmax of these
values over the candidates of one prompt, which `pair` computes. Images go through transformers' processor (RGB first, a
centre crop that floors half pixels), as published.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prefkit.score.embed.encoder import Encoder
from prefkit.types import Candidate, Score, ScorerSpec


@dataclass(frozen=True)
class PickscoreOptions:
    #: folder or Hub id of the tuned CLIP
    model: str = "yuvalkirstain/PickScore_v1"
    #: folder or Hub id of tokenizer and image processor
    processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


class Pickscore:
    Options = PickscoreOptions
    requires = frozenset({"image", "prompt"})
    scope = "absolute"

    def __init__(self, options: PickscoreOptions) -> None:
        self.encoder = Encoder(options.model, library="transformers", processor=options.processor)

    def spec(self) -> ScorerSpec:
        return ScorerSpec(
            "pickscore",
            "1",
            weights=self.encoder.weights(),
            revision=self.encoder.revision(),
            preprocessing=f"{self.encoder.preprocessing()}; prompt cut at the context length",
            formula="exp(logit_scale) * cos(image, prompt)",
            licence="MIT",
        )

    def load(self, device: str, dtype: str) -> None:
        """Raises UsageError for weights that are missing or not of a CLIP model."""
        self.encoder.load(device, dtype)

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        cosines = self.encoder.cosines(batch, [c.prompt for c in batch]).double()
        return [Score(value) for value in (self.encoder.scale * cosines).tolist()]


plugin = Pickscore
