"""Agreement of image and prompt by any open_clip model: the cosine, or one of the published scalings of it.

`model` is an open_clip architecture with `pretrained` a tag or a local checkpoint (safetensors, or a state
dict read without pickle), or `local-dir:FOLDER`, or `hf-hub:owner/name`. Text beyond the model's context
length is cut off, as in every published use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prefkit.errors import UsageError
from prefkit.types import Candidate, Score, ScorerSpec

FORMULAS = {
    "cosine": "cos(image, text)",
    "logit": "exp(logit_scale) * cos(image, text)",
    "clipscore": "2.5 * max(cos(image, text), 0)",  # Hessel et al., arXiv 2104.08718, eq. 1
}


@dataclass(frozen=True)
class ClipOptions:
    #: open_clip architecture, local-dir:FOLDER or hf-hub:owner/name
    model: str = "ViT-B-32"
    #: open_clip tag or path of a checkpoint; null for local-dir and hf-hub models
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
        self.texts: dict[str, Any] = {}

    def spec(self) -> ScorerSpec:
        from prefkit.models.revision import weights_revision

        pretrained = self._pretrained()
        source = pretrained or self.options.model
        local = Path(source.removeprefix("local-dir:")).expanduser()
        return ScorerSpec(
            "clip",
            "1",
            weights=f"{self.options.model} {pretrained or ''}".strip(),
            revision=weights_revision(local) if local.exists() else None,
            preprocessing="the model's own evaluation transform in open_clip"
            + (f"; prefix {self.options.prefix!r}" * bool(self.options.prefix)),
            formula=FORMULAS[self.options.scaling],
            range={"cosine": (-1.0, 1.0), "logit": (None, None), "clipscore": (0.0, 2.5)}[self.options.scaling],
            licence="that of the weights",
        )

    def load(self, device: str, dtype: str) -> None:
        """Raises UsageError for an architecture or weights that open_clip does not have."""
        import open_clip

        from prefkit.models.load import dtype_of

        name, pretrained = self.options.model, self._pretrained()
        if ":" not in name and name not in open_clip.list_models():
            from prefkit.registry import nearest

            raise UsageError(f"open_clip has no model {name!r}.{nearest(name, open_clip.list_models())}")
        try:
            model, _, self.transform = open_clip.create_model_and_transforms(
                name, pretrained, device=device, weights_only=True
            )
            self.tokenizer = open_clip.get_tokenizer(name)
        except (RuntimeError, OSError, ValueError, KeyError) as error:
            raise UsageError(
                f"clip: {name} {pretrained or ''} could not be loaded: {' '.join(str(error).split())[:300]}"
            ) from error
        self.dtype = dtype_of(dtype)
        self.model: Any = model.to(self.dtype).eval()
        self.device = device

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        import torch

        with torch.inference_mode():
            pixels = torch.stack([self.transform(c.pil()) for c in batch]).to(self.device, self.dtype)
            images = self.model.encode_image(pixels, normalize=True).float()
            cosines = (images * self._text([c.prompt for c in batch])).sum(-1)
            values = self._scaled(cosines)
        return [Score(value) for value in values.double().tolist()]

    def _scaled(self, cosines: Any) -> Any:
        if self.options.scaling == "logit":
            return self.model.logit_scale.exp().float() * cosines
        return 2.5 * cosines.clamp(min=0) if self.options.scaling == "clipscore" else cosines

    def _text(self, prompts: Sequence[str]) -> Any:
        """[B, D] unit vectors; candidates of one request share their prompt, so each is encoded once."""
        import torch

        unseen = [p for p in dict.fromkeys(prompts) if p not in self.texts]
        if unseen:
            tokens = self.tokenizer([self.options.prefix + p for p in unseen]).to(self.device)
            self.texts |= dict(zip(unseen, self.model.encode_text(tokens, normalize=True).float()))
        found = torch.stack([self.texts[p] for p in prompts])
        if len(self.texts) > 4096:
            self.texts.clear()
        return found

    def _pretrained(self) -> str | None:
        return None if ":" in self.options.model else self.options.pretrained


plugin = Clip
