"""ImageReward: a reward learned from experts' rankings of images for their prompts (Xu et al., arXiv 2304.05977).

    value = (head(CLS) - 0.16717) / 1.03334

CLS is the first output token of BLIP's text encoder, which reads the prompt with cross-attention to the image. The
constants give mean 0 and standard deviation 1 on the authors' images. The prompt is cut at 35 tokens, as published.
This is a port to the BLIP classes of transformers (prefkit/score/embed/blip.py) that reads the published checkpoint.

Images are prepared as in the published code: resized in their own mode (palette images are not interpolated),
cropped, then converted to RGB. prefkit differs in two points, both before the resize: it composites transparency on
`background` (white by default), where the published code scores the hidden colours of transparent pixels; and it
converts colour profiles to sRGB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefkit.score.licence import with_licence_of
from prefkit.types import Candidate, Score, ScorerSpec

FILE, CONFIG = "ImageReward.pt", "med_config.json"
MEAN, STD = 0.16717362830052426, 1.0333394966054072
TOKENS = 35


@dataclass(frozen=True)
class ImagerewardOptions:
    #: folder or Hub id with ImageReward.pt and med_config.json
    model: str = "THUDM/ImageReward"
    #: folder or Hub id of the tokenizer
    tokenizer: str = "google-bert/bert-base-uncased"


class Imagereward:
    Options = ImagerewardOptions
    requires = frozenset({"image", "prompt"})
    scope = "absolute"
    own_modes = True  # resizes before it converts to RGB

    def __init__(self, options: ImagerewardOptions) -> None:
        self.options = options

    def spec(self) -> ScorerSpec:
        from prefkit.models.load.revision import weights_revision
        from prefkit.score.embed.weights import file_revision

        files = dict.fromkeys(file_revision(self.options.model, name) for name in (FILE, CONFIG))
        spec = ScorerSpec(
            "imagereward",
            "2",
            weights=f"{self.options.model}, tokenizer {self.options.tokenizer}",
            revision=" ".join([*files, weights_revision(self.options.tokenizer)]),
            preprocessing="shortest side to the model's size, bicubic (Pillow), centre crop, then RGB; prompt cut at 35 tokens",
            formula=f"(linear head(CLS) - {MEAN}) / {STD}",
            licence="Apache-2.0",
        )
        return with_licence_of(spec, self.options.model, ImagerewardOptions.model)

    def load(self, device: str, dtype: str) -> None:
        """Raises UsageError if the weights are missing or are not those of ImageReward."""
        from transformers import AutoTokenizer

        from prefkit.models.precision import dtype_of
        from prefkit.score.embed.blip import Blip
        from prefkit.score.embed.networks import openai_transform, unloadable
        from prefkit.score.embed.weights import linear_head, read_state, weights_file

        path = weights_file(self.options.model, FILE)
        state = read_state(path)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(self.options.tokenizer)
        except (OSError, ValueError) as error:
            raise unloadable(self.options.tokenizer, error) from error
        self.device, self.dtype = device, dtype_of(dtype)
        blip = Blip(state, "blip.", weights_file(self.options.model, CONFIG), path)
        self.blip = blip.to(device, self.dtype).eval()
        self.head = linear_head(state, "mlp.", path).to(device)
        self.transform: Any = openai_transform(blip.size)

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        import torch

        text = self.tokenizer(
            [c.prompt for c in batch], padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        ).to(self.device)
        with torch.inference_mode():
            pixels = torch.stack([self.transform(c.native()) for c in batch]).to(self.device, self.dtype)
            features = self.blip(pixels, text.input_ids, text.attention_mask)
            values = (self.head(features.float())[:, 0].double() - MEAN) / STD
        return [Score(value) for value in values.tolist()]


plugin = Imagereward
