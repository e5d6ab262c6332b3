"""Objects, counts, colours and positions that a prompt asks for, checked with an object detector (GenEval, 2310.11513).

A request has the column `include`, a list of clauses {"class": "cup", "count": 2, "color": "red", "position": ["left of",
0]}, and optionally `exclude`, clauses of what must not be there. `position` relates the objects of the clause to those of
the clause with that index. These are the columns of GenEval's own metadata. Without them, the clauses are read from the
prompt, which must have the form of GenEval's ("a photo of two dogs", "a red car and a blue bench", "a dog left of a cat");
an image of another prompt fails. Prompts are not read if `detector` is a function, whose classes are unknown. Each clause has an aspect per condition
(`0 cup count`: 1 or 0), so scores, pairs (strategy `one_aspect`) and reports can say what was wrong. The value is the
fraction of the conditions that hold, or with `value: all`, 1 if all hold, else 0, as GenEval's benchmark reports it.

Rules, as published:
- An object is a detection of its class with more than `threshold` confidence, or more than `counting_threshold` if the
  request's column `tag` is "counting". At most 16 objects of a class count.
- `include` requires at least `count` objects, `exclude` fewer than `count`. GenEval writes "exactly 2" as both.
- Colour and position are judged on the `count` most confident objects, only if there are that many. Otherwise these
  aspects are left out, and count as not met in the value.
- Two objects stand in a relation if the vector between their centres, each component less 0.1 of the sum of their sizes,
  has more than half its original length on that side.
- The colour is one of ten: the one with the texts (`texts`, averaged) that are most similar to the object's crop, by CLIP.

Differences: GenEval judges a position only if the colours of the clause are right, too, and allows relations to earlier
clauses alone; `value: all` is the same. GenEval's detector, Mask2Former, gives masks, by which the background of a crop is
made grey. Detectors of transformers give boxes, so the background stays; a function as `detector` may return masks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from prefkit.errors import UsageError
from prefkit.registry import nearest
from prefkit.score.embed.encoder import Encoder
from prefkit.score.scorers._clauses import COLOURS, Found, clauses_of, evaluate, kept
from prefkit.score.scorers._detectors import detector_of
from prefkit.score.scorers._prompts import clauses_in
from prefkit.types import Candidate, Score, ScorerSpec

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

TEXTS = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")
GREY = (153, 153, 153)  # of a crop's background, if the detector gives masks
#: GenEval's name of a class -> its name in COCO, by which most detectors call it
COCO = {"computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard"}


@dataclass(frozen=True)
class GenevalOptions:
    #: folder or Hub id of an object detector of transformers, such as facebook/detr-resnet-50, or file.py:NAME, a function
    #: of a list of images that returns a list of (class, confidence, (left, top, right, bottom)) for each
    detector: str = ""
    #: Hub revision (branch, tag or commit) of the detector
    revision: str | None = None
    #: CLIP model that names colours: open_clip architecture, local-dir:FOLDER, hf-hub:owner/name or tiny (embedded)
    model: str = "ViT-L-14"
    #: open_clip tag or path of a checkpoint
    pretrained: str | None = "openai"
    #: texts whose mean names a colour; {colour} and {name} (of the class) are replaced. Default: GenEval's
    texts: tuple[str, ...] = TEXTS
    #: fraction (of conditions that hold) | all (1 if all hold, else 0)
    value: Literal["fraction", "all"] = "fraction"
    #: confidence above which a detection counts
    threshold: float = 0.3
    #: the same for requests whose column `tag` is "counting"
    counting_threshold: float = 0.9
    #: intersection over union at which a less confident object of the same class is left out; 1 = never
    max_overlap: float = 1.0


class Geneval:
    Options = GenevalOptions
    requires = frozenset({"image", "prompt"})
    scope = "absolute"

    def __init__(self, options: GenevalOptions) -> None:
        if not options.detector:
            raise UsageError(
                "geneval: `detector` is not set. Set it to a folder or Hub id of an object detector of transformers, such "
                "as facebook/detr-resnet-50, or to file.py:NAME, a function."
            )
        if wrong := [text for text in options.texts if "{colour}" not in text] or not options.texts:
            raise UsageError(f"geneval: `texts` contains {wrong or 'nothing'}; each text needs {{colour}}.")
        self.options = options
        self.detect = detector_of(options.detector, options.revision)
        self.encoder = Encoder(options.model, options.pretrained)

    def spec(self) -> ScorerSpec:
        o = self.options
        rest = f", overlap below {o.max_overlap:g}" * (o.max_overlap < 1)
        rest += f", colours by {'; '.join(o.texts)}" * (o.texts != TEXTS)
        return ScorerSpec(
            "geneval",
            "2",
            weights=f"{o.detector}; colours: {self.encoder.weights()}",
            revision=f"{self.detect.identity()} {self.encoder.revision() or ''}".strip(),
            preprocessing=f"RGB; the detector's own image processor; {self.encoder.preprocessing()}",
            formula=f"{o.value} of the conditions, confidence {o.threshold:g}, counting {o.counting_threshold:g}{rest}",
            range=(0.0, 1.0),
            licence="that of the weights",
        )

    def load(self, device: str, dtype: str) -> None:
        """Raises UsageError if the detector or the encoder cannot be loaded."""
        self.detect.load(device, dtype)
        self.encoder.load(device, dtype)

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        images = [c.pil() for c in batch]
        detections = self.detect(images, min(self.options.threshold, self.options.counting_threshold))
        return [self._score(c, image, found) for c, image, found in zip(batch, images, detections)]

    def _score(self, candidate: Candidate, image: Image, found: Sequence[Found]) -> Score:
        try:
            columns = self._columns(candidate)
            include, exclude = (clauses_of(columns, name) for name in ("include", "exclude"))
            names = {clause["class"]: self._class(clause["class"]) for clause in (*include, *exclude)}
        except ValueError as error:
            return Score(None, error=str(error))
        counting = columns.get("tag") == "counting"
        least = self.options.counting_threshold if counting else self.options.threshold
        objects = {
            name: kept([one for one in found if one.name == known], least, self.options.max_overlap)
            for name, known in names.items()
        }
        results = evaluate(include, exclude, objects, lambda one, name: self._colour(image, one, name))
        held = [float(result is True) for result in results.values()]
        value = math.fsum(held) / len(held) if self.options.value == "fraction" else float(all(held))
        judged = {name: float(result) for name, result in results.items() if result is not None}
        return Score(value, judged, f"found: {_listed(found, least)}")

    def _columns(self, candidate: Candidate) -> Mapping[str, Any]:
        """Return the request's columns, or those that its prompt stands for. Raises ValueError if it has neither."""
        if any(candidate.extra.get(column) is not None for column in ("include", "exclude")):
            return candidate.extra
        if not self.detect.classes:
            raise ValueError("the request has no column include, and the classes of the detector function are unknown")
        try:
            return clauses_in(candidate.prompt, self._knows)
        except ValueError as error:
            text = f"the request has no column include, and the prompt does not have the form of GenEval's: {error}"
            raise ValueError(text) from error

    def _knows(self, name: str) -> bool:
        return name in self.detect.classes or COCO.get(name) in self.detect.classes

    def _class(self, name: str) -> str:
        """Return the detector's name of a clause's class. Raises ValueError if the detector does not know it."""
        folded, classes = name.casefold(), self.detect.classes
        known = folded if folded in classes else COCO.get(folded, folded)
        if classes and known not in classes:
            raise ValueError(f"the detector knows no class {name!r}.{nearest(folded, sorted(classes))}")
        return known

    def _colour(self, image: Image, found: Found, name: str) -> str:
        similar = self.encoder.images([crop(image, found)]) @ self._colours(name).T
        return COLOURS[int(similar[0].argmax())]

    def _colours(self, name: str) -> Tensor:
        """Return the mean embeddings of the texts for each colour, unit vectors [10, D]."""
        import torch

        own = self.options.texts
        texts = [text.replace("{colour}", colour).replace("{name}", name) for colour in COLOURS for text in own]
        means = self.encoder.texts(texts).unflatten(0, (len(COLOURS), len(own))).mean(1)
        return torch.nn.functional.normalize(means, dim=-1)


def crop(image: Image, found: Found) -> Image:
    """Return the part of the image in the object's box; what is not in the object's mask is grey."""
    from PIL import Image as images

    if found.mask is not None:
        mask = images.fromarray(found.mask.astype("uint8") * 255)
        image = images.composite(image, images.new("RGB", image.size, GREY), mask)
    left, top, right, bottom = (round(side) for side in found.box)
    box = max(0, left), max(0, top), min(image.width, right), min(image.height, bottom)
    return image.crop(box) if box[0] < box[2] and box[1] < box[3] else image


def _listed(found: Sequence[Found], least: float) -> str:
    ranked = sorted((one for one in found if one.confidence > least), key=lambda one: -one.confidence)
    return ", ".join(f"{one.name} {one.confidence:.2f}" for one in ranked) or "nothing"


plugin = Geneval
