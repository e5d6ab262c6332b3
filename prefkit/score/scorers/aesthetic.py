"""LAION's aesthetic predictor v2: people's rating of an image's looks, about 1 to 10, without the prompt.

    value = head(E(image) / |E(image)|)

with E the image side of CLIP-L/14 and a head of five linear layers (768-1024-128-64-16-1, no activation, so one linear
map) trained on SAC, Logos and AVA ratings. The published file is `sac+logos+ava1-l14-linearMSE.pth`; the default is a
safetensors copy of it on the Hub.

Images are prepared as in the published code, OpenAI's `clip.load`: resized in their own mode (so that a palette is not
interpolated), a centre crop that rounds half pixels, then RGB. prefkit differs in two points: it
composites transparency on white (`background`) and converts colour profiles to sRGB first, because the published code
scores the hidden colours of transparent pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prefkit.errors import UsageError
from prefkit.score.embed.encoder import Encoder
from prefkit.types import Candidate, Score, ScorerSpec

FILE = "model.safetensors"


@dataclass(frozen=True)
class AestheticOptions:
    #: the head: a .pth or .safetensors file, a folder with model.safetensors, or a Hub id
    head: str = "ttj/sac-logos-ava1-l14-linearMSE"
    #: folder or Hub id of the encoder that the head was trained on
    model: str = "openai/clip-vit-large-patch14"


class Aesthetic:
    Options = AestheticOptions
    requires = frozenset({"image"})
    scope = "absolute"
    own_modes = True  # resizes before it converts to RGB

    def __init__(self, options: AestheticOptions) -> None:
        self.options = options
        self.encoder = Encoder(options.model, library="transformers", openai=True)

    def spec(self) -> ScorerSpec:
        from prefkit.score.embed.weights import file_revision

        return ScorerSpec(
            "aesthetic",
            "2",
            weights=f"{self.options.head} on {self.encoder.weights()}",
            revision=f"{file_revision(self.options.head, FILE)} on {self.encoder.revision()}",
            preprocessing=self.encoder.preprocessing(),
            formula="linear head(unit image embedding)",
            licence="Apache-2.0",
        )

    def load(self, device: str, dtype: str) -> None:
        """Raises UsageError for weights that are missing, of another shape, or for another encoder."""
        from prefkit.score.embed.weights import linear_head, read_state, weights_file

        path = weights_file(self.options.head, FILE)
        state = read_state(path)
        self.head = linear_head(state, "", path).to(device)
        self.encoder.load(device, dtype)
        expected, width = state["layers.0.weight"].shape[1], self.encoder.width
        if expected != width:
            raise UsageError(
                f"aesthetic: {path} needs embeddings of width {expected}; {self.options.model} has {width}."
            )

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        import torch

        with torch.inference_mode():
            values = self.head(self.encoder.candidates(batch))[:, 0]
        return [Score(value) for value in values.double().tolist()]


plugin = Aesthetic
