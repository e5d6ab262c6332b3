"""Agreement of image and prompt by any open_clip model: the cosine, or one of the published scalings of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prefkit.score.encoder import Encoder
from prefkit.types import Candidate, Score, ScorerSpec

FORMULAS = {
    "cosine": "cos(image, text)",
    "logit": "exp(logit_scale) * cos(image, text)",
    "clipscore": "2.5 * max(cos(image, text), 0)",  # Hessel et al., arXiv 2104.08718, eq. 1
}


@dataclass(frozen=True)
class ClipOptions:
    #: open_clip architecture, local-dir:FOLDER, hf-hub:owner/name, or tiny (embedded)
    model: str = "ViT-B-32"
    #: open_clip tag or path of a checkpoint; not used for local-dir, hf-hub and tiny
    pretrained: str | None = "laion2b_s34b_b79k"
    #: cosine | logit (times exp(logit_scale)) | clipscore (2.5 max(cos, 0))
    scaling: Literal["cosine", "logit", "clipscore"] = "cosine"
    #: put before every prompt (clipscore as published: "A photo depicts ")
    prefix: str = ""


class Clip:
    Options = ClipOptions
    requires = frozenset({"image", "prompt"})
    scope = "absolute"

    def __init__(self, options: ClipOptions) -> None:
        self.options = options
        self.encoder = Encoder(options.model, options.pretrained)
        self.texts: dict[str, Any] = {}

    def spec(self) -> ScorerSpec:
        return ScorerSpec(
            "clip",
            "1",
            weights=self.encoder.weights(),
            revision=self.encoder.revision(),
            preprocessing="the model's own evaluation transform in open_clip"
            + (f"; prefix {self.options.prefix!r}" * bool(self.options.prefix)),
            formula=FORMULAS[self.options.scaling],
            range={"cosine": (-1.0, 1.0), "logit": (None, None), "clipscore": (0.0, 2.5)}[self.options.scaling],
            licence="that of the weights",
        )

    def load(self, device: str, dtype: str) -> None:
        """Raises UsageError for an architecture or weights that open_clip does not have."""
        self.encoder.load(device, dtype)

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        images = self.encoder.images([c.pil() for c in batch])
        values = self._scaled((images * self._text([c.prompt for c in batch])).sum(-1))
        return [Score(value) for value in values.double().tolist()]

    def _scaled(self, cosines: Any) -> Any:
        if self.options.scaling == "logit":
            return self.encoder.model.logit_scale.detach().exp().float() * cosines
        return 2.5 * cosines.clamp(min=0) if self.options.scaling == "clipscore" else cosines

    def _text(self, prompts: Sequence[str]) -> Any:
        """[B, D] unit vectors; candidates of one request share their prompt, so each is encoded once."""
        import torch

        if len(self.texts) > 4096:
            self.texts.clear()
        unseen = [p for p in dict.fromkeys(prompts) if p not in self.texts]
        if unseen:
            self.texts |= dict(zip(unseen, self.encoder.texts([self.options.prefix + p for p in unseen])))
        return torch.stack([self.texts[p] for p in prompts])


plugin = Clip
