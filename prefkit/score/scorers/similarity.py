"""Similarity of an image to the example images of its request, by CLIP or another encoder, without the prompt.

    value = cos(E(image), mean of E(e) over the examples e), with embeddings of unit length

`examples` is a column of the requests that holds images; list it under `requests.images`. With a DINO network, such as
`timm:vit_small_patch14_dinov2`, it is the kind of reward that Adv-GRPO (arXiv 2511.20256) uses. A model that was tuned
on this score tends to copy the examples: evaluate it with another score, and look at the diversity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefkit.errors import UsageError
from prefkit.score.core import undecodable, with_input_images
from prefkit.score.embed.encoder import Encoder
from prefkit.types import Candidate, Score, ScorerSpec

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SimilarityOptions:
    #: column of the requests with the example images
    examples: str = ""
    #: open_clip architecture, local-dir:FOLDER, hf-hub:owner/name, tiny (embedded), torchvision:NAME or timm:NAME
    model: str = "ViT-H-14"
    #: open_clip tag or path of a checkpoint (torchvision, timm: path); not used for local-dir, hf-hub and tiny
    pretrained: str | None = "laion2b_s32b_b79k"


class Similarity:
    Options = SimilarityOptions
    scope = "absolute"

    def __init__(self, options: SimilarityOptions) -> None:
        if not options.examples:
            raise UsageError(
                "similarity: `examples` is not set; set it to the column of the requests with the example images, and "
                "list that column under requests.images."
            )
        self.options = options
        self.requires = frozenset({"image", options.examples})
        self.encoder = Encoder(options.model, options.pretrained, needs_text=False)
        self.means: dict[tuple[str, ...], Tensor] = {}

    def spec(self) -> ScorerSpec:
        return ScorerSpec(
            "similarity",
            "1",
            weights=self.encoder.weights(),
            revision=self.encoder.revision(),
            preprocessing=self.encoder.preprocessing(),
            formula=f"cos(image, mean of the unit embeddings of the column {self.options.examples})",
            range=(-1.0, 1.0),
            licence="that of the weights",
        )

    def load(self, device: str, dtype: str) -> None:
        """Raises UsageError if the encoder cannot be loaded."""
        self.encoder.load(device, dtype)

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        return with_input_images(batch, self.options.examples, self._scores)

    def _scores(self, batch: Sequence[Candidate]) -> list[Score]:
        return [self._score(image, candidate) for image, candidate in zip(self.encoder.candidates(batch), batch)]

    def _score(self, image: Tensor, candidate: Candidate) -> Score:
        try:
            return Score(float(image @ self._mean(candidate.input_images(self.options.examples))))
        except (OSError, ValueError) as error:
            return Score(None, error=undecodable(error))

    def _mean(self, examples: Sequence[Candidate]) -> Tensor:
        """Return the mean of the examples' embeddings as a unit vector [D], cached."""
        from torch.nn.functional import normalize

        key = tuple(example.id for example in examples)
        if key not in self.means:
            embeddings = self.encoder.images([example.pil() for example in examples], normalize=True)
            self.means[key] = normalize(embeddings.mean(0), dim=0)
        return self.means[key]


plugin = Similarity
