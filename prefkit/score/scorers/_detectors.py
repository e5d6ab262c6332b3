"""Object detectors of the scorer geneval: a network of transformers, or a function of the user."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from prefkit import registry
from prefkit.errors import PluginError, UsageError
from prefkit.plugin_guard import described, guarded, picture
from prefkit.score.scorers._clauses import Found

if TYPE_CHECKING:
    from PIL.Image import Image


class Network:
    """An object detector of transformers. classes: the names that it detects, in lower case."""

    classes: frozenset[str]

    def __init__(self, name: str, revision: str | None) -> None:
        self.name, self.revision = name, revision

    def identity(self) -> str:
        from prefkit.models.load.revision import weights_revision

        return weights_revision(self.name, self.revision)

    def load(self, device: str, dtype: str) -> None:
        """Raises UsageError if the detector cannot be loaded."""
        import transformers

        from prefkit.models.precision import dtype_of

        self.device = device
        detectors: Any = transformers.AutoModelForObjectDetection
        try:
            self.processor: Any = transformers.AutoImageProcessor.from_pretrained(self.name, revision=self.revision)
            self.model: Any = detectors.from_pretrained(self.name, revision=self.revision, dtype=dtype_of(dtype))
        except (OSError, ValueError, KeyError, ImportError) as error:
            text = " ".join(str(error).split())[:300]
            raise UsageError(f"geneval: {self.name} could not be loaded as an object detector: {text}") from error
        self.model.to(device).eval()
        self.names = {number: str(name).casefold() for number, name in self.model.config.id2label.items()}
        self.classes = frozenset(self.names.values())

    def __call__(self, images: Sequence[Image], threshold: float) -> list[list[Found]]:
        """Detect the objects with a confidence above the threshold."""
        import torch

        inputs = self.processor(images=list(images), return_tensors="pt").to(self.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        with torch.inference_mode():
            outputs = self.model(**inputs)
        sizes = [(image.height, image.width) for image in images]
        results = self.processor.post_process_object_detection(outputs, threshold=threshold, target_sizes=sizes)
        return [
            [
                Found(self.names[int(label)], float(score), tuple(box))
                for label, score, box in zip(one["labels"], one["scores"], one["boxes"].tolist())
            ]
            for one in results
        ]


class Function:
    """A function of the user, file.py:NAME: it returns, for each image, a list of (class, confidence, box[, mask])."""

    classes: frozenset[str] = frozenset()  # unknown

    def __init__(self, use: str) -> None:
        self.use, self.who = use, f"detector {use}"
        self.function: Callable[[list[Image]], Any] = registry.load("detector", use)
        if not callable(self.function):
            raise PluginError(f"{self.who} is {described(self.function)}; it must be a function of a list of images.")

    def identity(self) -> str:
        return registry.code_hash(self.use) or ""

    def load(self, device: str, dtype: str) -> None:
        """Do nothing: a function loads what it needs."""

    def __call__(self, images: Sequence[Image], threshold: float) -> list[list[Found]]:
        """Raises PluginError if the function fails or returns something else."""
        with guarded(self.who, "failed"):
            results = self.function([picture(image) for image in images])
        if not isinstance(results, list) or len(results) != len(images):
            raise PluginError(
                f"{self.who} returned {described(results)} for {len(images)} images; it must return a list with one "
                "list of objects per image."
            )
        return [[self._found(one, image) for one in objects] for image, objects in zip(images, results)]

    def _found(self, one: Any, image: Image) -> Found:
        import numpy as np

        try:
            name, confidence, box, *rest = one
            left, top, right, bottom = (float(side) for side in box)
            mask = np.asarray(rest[0], bool) if rest and rest[0] is not None else None
            found = Found(str(name).casefold(), float(confidence), (left, top, right, bottom), mask)
        except (TypeError, ValueError) as error:
            raise PluginError(
                f"{self.who} returned the object {str(one)[:80]}; an object is (class, confidence, (left, top, right, "
                "bottom)), with an optional mask."
            ) from error
        if mask is not None and mask.shape != (image.height, image.width):
            raise PluginError(
                f"{self.who} returned a mask of shape {mask.shape} for an image of {image.width} x {image.height} px; a "
                "mask is [height, width] of the image."
            )
        return found


def detector_of(name: str, revision: str | None) -> Network | Function:
    """Return the detector without loading weights: file.py:NAME is a function, all else a folder or Hub id."""
    if ".py:" in name:
        if revision is not None:
            raise UsageError("geneval: `revision` is for a Hub id, but `detector` is a function. Remove `revision`.")
        return Function(name)
    return Network(name, revision)
