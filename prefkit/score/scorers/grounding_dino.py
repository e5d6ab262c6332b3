"""Box of the subject in an image, found by Grounding DINO (arXiv 2303.05499): the mask of Science-T2I's OFT (arXiv 2504.13129).

The value is the highest score of a detection of the phrase, 0 without one. The aspects box_left, box_top, box_right and
box_bottom are fractions of the image. As published, they enclose all detections with a score above `threshold`, and width
and height are larger by `margin` (1 if that exceeds 1), around the same centre. Without a detection, there is no box, so
that the full image counts:

    score: {box: {use: grounding_dino, text: subject}}
    train: {oft: {objective: {use: oft}, online: {rewards: {sciscore: 1}, mask: box}}}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefkit.errors import UsageError
from prefkit.output import message
from prefkit.types import Candidate, Score, ScorerSpec

if TYPE_CHECKING:
    from torch import Tensor

EDGES = ("box_left", "box_top", "box_right", "box_bottom")


@dataclass(frozen=True)
class GroundingDinoOptions:
    #: folder or Hub id of a Grounding DINO of transformers
    model: str = "IDEA-Research/grounding-dino-tiny"
    #: column of the requests with the phrase to find; prompt = the prompt itself
    text: str = "subject"
    #: minimum score of a detection
    threshold: float = 0.35
    #: added to the box's width and height, in fractions of the image
    margin: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1 or not 0 <= self.margin < 1:
            raise UsageError(
                f"grounding_dino: threshold is {self.threshold:g} and margin {self.margin:g}; threshold must be between 0 "
                "and 1, margin at least 0 and below 1."
            )


class GroundingDino:
    Options = GroundingDinoOptions
    scope = "absolute"

    def __init__(self, options: GroundingDinoOptions) -> None:
        self.options = options
        self.requires = frozenset({"image", options.text})

    def spec(self) -> ScorerSpec:
        from prefkit.models.load.revision import weights_revision

        o = self.options
        return ScorerSpec(
            "grounding_dino",
            "1",
            weights=o.model,
            revision=weights_revision(o.model),
            preprocessing="RGB; the model's own image processor",
            formula=f"score of {o.text}; box of all above {o.threshold:g}, margin {o.margin:g}",
            range=(0.0, 1.0),
            licence="that of the weights",
        )

    def load(self, device: str, dtype: str) -> None:
        """Raises UsageError if the model cannot be loaded."""
        from transformers import AutoProcessor, GroundingDinoForObjectDetection

        from prefkit.models.precision import dtype_of

        self.device = device
        try:
            self.processor: Any = AutoProcessor.from_pretrained(self.options.model)
            network: Any = GroundingDinoForObjectDetection.from_pretrained(
                self.options.model, dtype=dtype_of(dtype), use_safetensors=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise UsageError(
                f"grounding_dino: {self.options.model} cannot be loaded: {message(str(error), 200)}. Set `model` to a "
                "folder or Hub id of a Grounding DINO."
            ) from error
        self.network = network.to(device).eval()

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        import torch

        images = [candidate.pil().convert("RGB") for candidate in batch]
        texts = [self._phrase(candidate) for candidate in batch]
        inputs = self.processor(images=images, text=texts, return_tensors="pt", padding=True).to(self.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.network.dtype)
        with torch.inference_mode():
            outputs = self.network(**inputs)
        scores = outputs.logits.float().sigmoid().amax(-1)
        return [self._score(row, boxes) for row, boxes in zip(scores, outputs.pred_boxes.float(), strict=True)]

    def _phrase(self, candidate: Candidate) -> str:
        """Return the phrase as the model was trained: lower case, with a full stop at its end."""
        text = candidate.prompt if self.options.text == "prompt" else str(candidate.extra[self.options.text])
        return text.strip().lower().rstrip(".").replace(".", ",") + "."

    def _score(self, scores: Tensor, boxes: Tensor) -> Score:
        """Return the score of an image. scores: [Q]; boxes: [Q, 4], centre, width and height as fractions."""
        kept = boxes[scores > self.options.threshold]
        if not len(kept):
            return Score(float(scores.max()))
        low, high = (kept[:, :2] - kept[:, 2:] / 2).amin(0), (kept[:, :2] + kept[:, 2:] / 2).amax(0)
        centre, size = (low + high) / 2, (high - low + self.options.margin).clamp(max=1)
        corners = [*(centre - size / 2).clamp(min=0).tolist(), *(centre + size / 2).clamp(max=1).tolist()]
        return Score(float(scores.max()), dict(zip(EDGES, corners, strict=True)))


plugin = GroundingDino
