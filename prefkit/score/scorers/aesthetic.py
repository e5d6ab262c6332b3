"""LAION's aesthetic predictor v2: predicts how people rate an image's looks, about 1 to 10; the prompt is not used.

    value = head(E(image) / |E(image)|)

E is the image encoder of CLIP-L/14. The head has five linear layers without activations (768-1024-128-64-16-1), trained
on SAC, Logos and AVA ratings. The default is a safetensors copy of the published `sac+logos+ava1-l14-linearMSE.pth`.

Images are prepared as in the published code, OpenAI's `clip.load`: resized in their own mode (palette images are not
interpolated), cropped at the centre (half pixels are rounded), then converted to RGB. prefkit differs in two points,
both before the resize: it composites transparency on `background` (white by default), where the published code scores
the hidden colours of transparent pixels; and it converts colour profiles to sRGB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prefkit.errors import UsageError
from prefkit.score.embed.encoder import Encoder
from prefkit.score.licence import with_licence_of
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

        spec = ScorerSpec(
            "aesthetic",
            "2",
            weights=f"{self.options.head} on {self.encoder.weights()}",
            revision=f"{file_revision(self.options.head, FILE)} on {self.encoder.revision()}",
            preprocessing=self.encoder.preprocessing(),
            formula="linear head(unit image embedding)",
            licence="Apache-2.0",
        )
        return with_licence_of(spec, self.options.head, AestheticOptions.head)

    def load(self, device: str, dtype: str) -> None:
        """Raises UsageError if the weights are missing, have other shapes or belong to another encoder."""
        from prefkit.score.embed.weights import linear_head, read_state, weights_file

        path = weights_file(self.options.head, FILE)
        state = read_state(path)
        self.head = linear_head(state, "", path).to(device)
        self.encoder.load(device, dtype)
        expected, width = state["layers.0.weight"].shape[1], self.encoder.width
        if expected != width:
            raise UsageError(
                f"aesthetic: {path} needs embeddings of width {expected}; {self.options.model} has {width}. "
                "Set `model` to the encoder of this head."
            )

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        import torch

        with torch.inference_mode():
            values = self.head(self.encoder.candidates(batch))[:, 0]
        return [Score(value) for value in values.double().tolist()]


plugin = Aesthetic
