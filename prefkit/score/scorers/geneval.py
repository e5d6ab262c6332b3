"""Objects, counts, colours and positions that a prompt asks for, checked with an object detector (GenEval, 2310.11513).

A request has the column `include`, a list of clauses {"class": "cup", "count": 2, "color": "red", "position": ["left of",
0]}, and optionally `exclude`, clauses of what must not be there. `position` relates the objects of the clause to those of
the clause with that index. These are the columns of GenEval's own metadata. The value is the fraction of
clauses that hold, or with `value: all`, 1 if all hold, else 0, as GenEval's benchmark reports it. Each clause has an
aspect (`0 cup count`: 1 or 0), so scores and reports can say what was wrong.

Rules, as published: an object is a detection of its class with at least `threshold` confidence, or `counting_threshold`
if the request is about counts alone; `include` wants at least `count` objects, exactly `count` in counting prompts
(GenEval writes that as `exclude` with count + 1), `exclude` fewer than `count`. Two objects stand in a relation if the
distance of their centres, less 0.1 of the sum of their sizes, points to that side. An object's colour is that of ten
colours whose text, `a photo of a red cup`, is the most similar to the crop of the object, by CLIP.

The detector is any object detector of transformers. GenEval used Mask2Former with masks and blanked the background before
it asked for the colour; boxes are used here, so values can differ from the published ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from prefkit.errors import UsageError
from prefkit.score.embed.encoder import Encoder
from prefkit.types import Candidate, Score, ScorerSpec

if TYPE_CHECKING:
    from PIL.Image import Image

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
KEYS = {"class", "count", "color", "position"}
#: relation -> (axis, sign) of the vector from the other object's centre to this object's centre
RELATIONS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
SLACK = 0.1  # fraction of the objects' sizes by which their centres must be apart


class Found(NamedTuple):
    """A detected object. box: left, top, right, bottom in pixels."""

    name: str
    confidence: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class GenevalOptions:
    #: folder or Hub id of an object detector of transformers, such as facebook/detr-resnet-50
    detector: str = ""
    #: Hub revision (branch, tag or commit) of the detector
    revision: str | None = None
    #: CLIP model that names colours: open_clip architecture, local-dir:FOLDER, hf-hub:owner/name or tiny (embedded)
    model: str = "ViT-L-14"
    #: open_clip tag or path of a checkpoint
    pretrained: str | None = "openai"
    #: fraction (of clauses that hold) | all (1 if all hold, else 0)
    value: Literal["fraction", "all"] = "fraction"
    #: minimum confidence of a detection
    threshold: float = 0.3
    #: minimum confidence in requests whose column `tag` is "counting"
    counting_threshold: float = 0.9


class Geneval:
    Options = GenevalOptions
    requires = frozenset({"image", "include"})
    scope = "absolute"

    def __init__(self, options: GenevalOptions) -> None:
        if not options.detector:
            raise UsageError(
                "geneval: `detector` is not set. Set it to a folder or Hub id of an object detector of transformers, such "
                "as facebook/detr-resnet-50."
            )
        self.options = options
        self.encoder = Encoder(options.model, options.pretrained)

    def spec(self) -> ScorerSpec:
        from prefkit.models.load.revision import weights_revision

        o = self.options
        return ScorerSpec(
            "geneval",
            "1",
            weights=f"{o.detector}; colours: {self.encoder.weights()}",
            revision=f"{weights_revision(o.detector, o.revision)} {self.encoder.revision() or ''}".strip(),
            preprocessing=f"RGB; the detector's own image processor; {self.encoder.preprocessing()}",
            formula=f"{o.value} of the clauses, confidence {o.threshold:g}, counting {o.counting_threshold:g}",
            range=(0.0, 1.0),
            licence="that of the weights",
        )

    def load(self, device: str, dtype: str) -> None:
        """Raises UsageError if the detector or the encoder cannot be loaded."""
        import transformers

        from prefkit.models.precision import dtype_of

        o, self.device = self.options, device
        detectors: Any = transformers.AutoModelForObjectDetection
        try:
            self.processor: Any = transformers.AutoImageProcessor.from_pretrained(o.detector, revision=o.revision)
            self.detector: Any = detectors.from_pretrained(o.detector, revision=o.revision, dtype=dtype_of(dtype))
        except (OSError, ValueError, KeyError, ImportError) as error:
            text = " ".join(str(error).split())[:300]
            raise UsageError(f"geneval: {o.detector} could not be loaded as an object detector: {text}") from error
        self.detector.to(device).eval()
        self.encoder.load(device, dtype)

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        images = [c.pil() for c in batch]
        detections = self._detect(images)
        return [self._score(c, image, found) for c, image, found in zip(batch, images, detections)]

    def _score(self, candidate: Candidate, image: Image, found: Sequence[Found]) -> Score:
        try:
            include, exclude = (clauses_of(candidate.extra, name) for name in ("include", "exclude"))
        except ValueError as error:
            return Score(None, error=str(error))
        counting = candidate.extra.get("tag") == "counting"
        least = self.options.counting_threshold if counting else self.options.threshold
        found = [one for one in found if one.confidence >= least]
        results = evaluate(include, exclude, found, lambda one: self._colour(image, one))
        held = [float(result) for result in results.values()]
        value = math.fsum(held) / len(held) if self.options.value == "fraction" else float(all(held))
        seen = ", ".join(f"{one.name} {one.confidence:.2f}" for one in found)
        return Score(value, dict(zip(results, held)), f"found: {seen or 'nothing'}")

    def _detect(self, images: Sequence[Image]) -> list[list[Found]]:
        import torch

        inputs = self.processor(images=list(images), return_tensors="pt").to(self.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.detector.dtype)
        with torch.inference_mode():
            outputs = self.detector(**inputs)
        sizes = [(image.height, image.width) for image in images]
        least = min(self.options.threshold, self.options.counting_threshold)
        results = self.processor.post_process_object_detection(outputs, threshold=least, target_sizes=sizes)
        names = self.detector.config.id2label
        return [
            [
                Found(str(names[int(label)]).casefold(), float(score), (left, top, right, bottom))
                for label, score, (left, top, right, bottom) in zip(one["labels"], one["scores"], one["boxes"].tolist())
            ]
            for one in results
        ]

    def _colour(self, image: Image, found: Found) -> str:
        left, top, right, bottom = found.box
        box = (
            max(0, int(left)),
            max(0, int(top)),
            min(image.width, int(right) + 1),
            min(image.height, int(bottom) + 1),
        )
        crop = image.crop(box) if box[0] < box[2] and box[1] < box[3] else image
        texts = self.encoder.texts([f"a photo of a {colour} {found.name}" for colour in COLOURS])
        return COLOURS[int((self.encoder.images([crop]) @ texts.T)[0].argmax())]


def clauses_of(extra: Mapping[str, Any], column: str) -> list[dict[str, Any]]:
    """Return the clauses in a request's column, [] if it has none. Raises ValueError for an invalid clause."""
    clauses = extra.get(column) or []
    if not isinstance(clauses, list) or (column == "include" and not clauses):
        raise ValueError(f'{column} is not a list of clauses such as {{"class": "cup", "count": 2}}')
    for number, clause in enumerate(clauses):
        if not isinstance(clause, dict) or not isinstance(clause.get("class"), str) or clause.keys() - KEYS:
            raise ValueError(
                f"{column} clause {number} must be an object with class and, optionally, {', '.join(sorted(KEYS))}"
            )
        count, colour, position = clause.get("count", 1), clause.get("color"), clause.get("position")
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"{column} clause {number}: count is {count!r}; it must be a whole number from 1")
        if colour is not None and colour not in COLOURS:
            raise ValueError(f"{column} clause {number}: color is {colour!r}; it must be one of {', '.join(COLOURS)}")
        if position is not None:
            other = position[1] if isinstance(position, list) and len(position) == 2 else None
            valid = isinstance(other, int) and 0 <= other < len(clauses) and other != number
            if not valid or position[0] not in RELATIONS:
                raise ValueError(
                    f"{column} clause {number}: position is {position!r}; it must be [relation, index of another clause], "
                    f"with a relation out of {', '.join(RELATIONS)}"
                )
    return clauses


def evaluate(
    include: Sequence[Mapping[str, Any]], exclude: Sequence[Mapping[str, Any]], found: Sequence[Found], colour_of: Any
) -> dict[str, bool]:
    """Return {aspect: whether it holds}. found: detections above the threshold; colour_of(Found) -> one of COLOURS."""
    ranked = sorted(found, key=lambda one: -one.confidence)
    objects = [[one for one in ranked if one.name == clause["class"].casefold()] for clause in include]
    results: dict[str, bool] = {}
    for number, clause in enumerate(include):
        mine, name, count = objects[number], f"{number} {clause['class']}", clause.get("count", 1)
        results[f"{name} count"] = len(mine) >= count
        if clause.get("color"):
            coloured = [one for one in mine[:count] if colour_of(one) == clause["color"]]
            results[f"{name} color"] = len(coloured) >= count
        if clause.get("position"):
            relation, other = clause["position"]
            pairs = [(a, b) for a in mine[:count] for b in objects[other][: include[other].get("count", 1)]]
            results[f"{name} position"] = bool(pairs) and all(related(a.box, b.box, relation) for a, b in pairs)
    for number, clause in enumerate(exclude):
        rest = [one for one in ranked if one.name == clause["class"].casefold()]
        results[f"exclude {number} {clause['class']}"] = len(rest) < clause.get("count", 1)
    return results


def related(box: Sequence[float], other: Sequence[float], relation: str) -> bool:
    """True if `box` is on that side of `other`, more than 0.5 of the way after the slack, as in GenEval."""
    offset = [(box[i] + box[i + 2] - other[i] - other[i + 2]) / 2 for i in (0, 1)]
    sizes = [(box[i + 2] - box[i]) + (other[i + 2] - other[i]) for i in (0, 1)]
    revised = [math.copysign(max(abs(o) - SLACK * size, 0.0), o) for o, size in zip(offset, sizes)]
    if all(abs(value) < 1e-3 for value in revised):
        return False
    axis, sign = RELATIONS[relation]
    return sign * revised[axis] / math.hypot(*offset) > 0.5


plugin = Geneval
