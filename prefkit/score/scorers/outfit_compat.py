"""Compatibility of an image with the other items of an outfit: FashionDPO's "VBPR", with its defects fixed.

    value = h(u) . h(f) + b . f + b0,   h(x) = LeakyReLU(W2 LeakyReLU(W1 x))

f is the image's embedding, u the mean of the other items' embeddings (FashionDPO, arXiv 2504.12900, section 4.2). The
sigmoid of the difference of two values is the probability that the first image fits better than the second. Values are
comparable only within a category, because `prefkit fit outfit_compat` uses negatives of the same category. A request's
`outfit` is a list of images: paths, ids of inputs, or mappings with `image`. The score fails if any is unreadable.

Five defects of the published code, and the fixes:
1. its encoder ends in a random layer, which differs between training and scoring. Fix: the encoder's revision is stored
   with the head, and an encoder with another revision is refused.
2. one in five of the outfit positions drawn in training does not exist, and a blank white image is learned as the best
   fit. Fix: positions are drawn only among the items of the outfit.
3. its negatives are drawn once for all epochs from the first 10,000 ids, of any category, and may be in the outfit. Fix:
   they are drawn each epoch from the whole catalogue, of the same category and outside of the outfit.
4. it scales training images and candidates differently. Fix: all images go through the encoder's preprocessing.
5. its head has tables with a row per catalogue item, whose lengths differ between training and scoring, so that its weights
   do not load. Fix: the head has no table of items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.errors import UsageError
from prefkit.images import rgb
from prefkit.paths import named
from prefkit.plugin_guard import error_text
from prefkit.score.fitted import Fitted
from prefkit.types import Candidate, Score, ScorerSpec

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True)
class OutfitCompatOptions:
    #: folder that `prefkit fit outfit_compat` has written, or its Hub id
    model: str = ""
    #: Hub revision (branch, tag or commit) of the model
    revision: str | None = None
    #: folder of the outfits' images: a run folder (images are then ids of its inputs), or the base of relative paths
    images: str = ""


class OutfitCompat:
    Options = OutfitCompatOptions
    requires = frozenset({"image", "outfit"})
    scope = "absolute"

    def __init__(self, options: OutfitCompatOptions) -> None:
        self.options = options
        self.images = Path(options.images).expanduser()
        if options.images and not self.images.is_dir():
            raise UsageError(f"outfit_compat.images: {options.images} is not a folder.")
        self.fitted = Fitted("outfit_compat", options.model, options.revision)
        self.encoder = self.fitted.encoder()
        self.seen: dict[str, Tensor | str] = {}  # embedding of each image, or the error message

    def spec(self) -> ScorerSpec:
        mean = "h of the others' mean" if self.fitted.spec["head"]["pool"] == "embeddings" else "mean of the others' h"
        return ScorerSpec(
            "outfit_compat",
            "1",
            weights=f"{self.fitted.shown} on {self.encoder.weights()}",
            revision=self.fitted.revision(),
            preprocessing=self.encoder.preprocessing(),
            formula=f"u.h(f) + b.f + b0, u = {mean}",
            licence="that of the encoder and of the outfits",
        )

    def load(self, device: str, dtype: str) -> None:
        """Raises UsageError if the weights are not those of outfit_compat."""
        from prefkit.score.embed.outfit_head import OutfitHead

        self.head = OutfitHead.of(self.fitted.state(), self.fitted.spec["head"]["pool"], str(self.fitted.folder))
        self.encoder.load(device, dtype)

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        import torch

        from prefkit.score.embed.outfit_head import others_of

        others = [self._others(c.extra["outfit"]) for c in batch]
        live = [(c, rows) for c, rows in zip(batch, others) if not isinstance(rows, str)]
        values: list[float] = []
        if live:
            with torch.inference_mode():
                items = self.encoder.candidates([c for c, _ in live]).cpu()
                values = self.head(self.head.context(*others_of([rows for _, rows in live])), items).tolist()
        remaining = iter(values)
        return [Score(None, error=rows) if isinstance(rows, str) else Score(next(remaining)) for rows in others]

    def _others(self, outfit: Any) -> Tensor | str:
        """Return the embeddings [L, D] of the outfit's images, or an error message."""
        import torch

        if not isinstance(outfit, Sequence) or isinstance(outfit, str) or not len(outfit):
            return f"`outfit` is {outfit!r}; it must be a list of images"
        names: list[Any] = [item.get("image") if isinstance(item, Mapping) else item for item in outfit]
        if not all(isinstance(name, str) and name for name in names):
            return "an item of `outfit` names no image"
        rows = [self._embedded(name) for name in names]
        errors = [row for row in rows if isinstance(row, str)]
        return errors[0] if errors else torch.stack([row for row in rows if not isinstance(row, str)])

    def _embedded(self, name: str) -> Tensor | str:
        if name not in self.seen:
            try:
                self.seen[name] = self.encoder.images([self._open(name)])[0].cpu()
            except (OSError, ValueError) as error:
                self.seen[name] = f"the outfit's image {name} could not be read: {_reason(error)}"
        return self.seen[name]

    def _open(self, name: str) -> Image:
        return rgb(self._inputs()[name] if name in self._inputs() else named(self.images, name))

    def _inputs(self) -> dict[str, bytes]:
        """Return {id: bytes} of the run's inputs, which are read only once."""
        if not hasattr(self, "inputs"):
            from prefkit.store import Store

            table = Store(self.images).inputs().read() if self.options.images else None
            rows = [] if table is None else table.to_pylist()
            self.inputs: dict[str, bytes] = {row["id"]: row["bytes"] for row in rows}
        return self.inputs


plugin = OutfitCompat


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or error_text(error)
    return " ".join(text.split())[:200]
