"""Similarity of an image to the images that its user liked, by CLIP or another encoder, without the prompt.

    value = cos(E(image), mean of E(h) over the items h)

The items are those of the user's history in the request's category, or the whole history if it has none in that
category. The score fails for a user without a history. FashionDPO (arXiv 2504.12900, section 4.2) uses it as a reward
with at most ten items, unnormalised embeddings and 100 times the cosine: `items: raw, scale: 100, most: 10`. By default
all items have equal weight. If each request has its own example images instead of a user, use the scorer `similarity`
(`examples`: their column). Evaluate a model that was tuned on this score with another score.

A request has the column `user` and optionally `category` and `truth`, an item to exclude because it is the answer. The
history has the columns `user` and `image`, optionally `category` and `item`; paths are relative to the table's folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from prefkit import tiny
from prefkit.errors import UsageError
from prefkit.images import rgb
from prefkit.paths import named
from prefkit.score.embed.encoder import Encoder
from prefkit.tables import id_text, read, user_path
from prefkit.tables.files import regular
from prefkit.types import Candidate, Score, ScorerSpec

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PersonalizationOptions:
    #: table (.csv, .jsonl, .parquet) with the columns user, image and optionally category, item; or tiny (embedded)
    history: str = ""
    #: open_clip architecture, local-dir:FOLDER, hf-hub:owner/name, tiny (embedded), torchvision:NAME or timm:NAME
    model: str = "ViT-H-14"
    #: open_clip tag or path of a checkpoint (torchvision, timm: path); not used for local-dir, hf-hub and tiny
    pretrained: str | None = "laion2b_s32b_b79k"
    #: unit (equal weights) | raw (items weighted by the length of their embeddings, as published)
    items: Literal["unit", "raw"] = "unit"
    #: number of latest items of a user and category to use; 0 = all
    most: int = 0
    scale: float = 1.0


class Liked(NamedTuple):
    """A row of the history. path: file of the image; item and category: None if missing."""

    user: str
    image: str
    path: Path
    item: str | None
    category: str | None


class Personalization:
    Options = PersonalizationOptions
    requires = frozenset({"image", "user"})
    scope = "absolute"

    def __init__(self, options: PersonalizationOptions) -> None:
        if not options.history:
            raise UsageError(
                "personalization: `history` is not set; set it to a table of user and image (.csv, .jsonl or .parquet)."
            )
        self.options = options
        history = str(tiny.HISTORY) if options.history == tiny.NAME else options.history
        self.path = user_path(history, "personalization.history")
        self.encoder = Encoder(options.model, options.pretrained, needs_text=False)
        self.tastes: dict[tuple[Any, ...], Tensor | None] = {}

    def spec(self) -> ScorerSpec:
        from prefkit.models.load.revision import weights_revision
        from prefkit.types import digest

        o = self.options
        files = {liked.image: liked.path for liked in self.history()}
        images = digest([(name, weights_revision(files[name])) for name in sorted(files)])
        transform = "the model's own evaluation transform"  # part of the fingerprint of stored scores, so this text must not change
        if self.encoder.library != "open_clip":
            transform = self.encoder.preprocessing()
        return ScorerSpec(
            "personalization",
            "1",
            weights=self.encoder.weights(),
            revision=self.encoder.revision(),
            preprocessing=f"{transform}; history {weights_revision(self.path)}, images {images}",
            formula=f"{o.scale:g} * cos(image, mean of {o.items} embeddings of the last {o.most or 'all'} items)",
            range=(-o.scale, o.scale),
            licence="that of the weights",
        )

    def history(self) -> list[Liked]:
        """Return the rows of the table. Raises UsageError for a missing file, column or image."""
        rows = []
        for where, values, _ in read(self.path, shown=f"personalization.history: {self.path}"):
            missing = [name for name in ("user", "image") if name not in values]
            if missing:
                raise UsageError(f"{where} has no column {', '.join(missing)}; its columns are {', '.join(values)}.")
            user, image = values["user"], values["image"]
            if user is None or not isinstance(image, str):
                raise UsageError(f"{where} needs a user and the path of an image. Remove the row or fill it in.")
            try:
                path = named(self.path.parent, image)
            except ValueError as error:
                raise UsageError(f"{where}: {error}.") from error
            regular(path, f"{where}: the image {image}")
            item, category = (None if values.get(n) is None else id_text(values[n]) for n in ("item", "category"))
            rows.append(Liked(id_text(user), image, path, item, category))
        return rows

    def load(self, device: str, dtype: str) -> None:
        """Raises UsageError if the history cannot be read or the encoder cannot be loaded."""
        self.users: dict[str, list[Liked]] = {}
        for liked in self.history():
            self.users.setdefault(liked.user, []).append(liked)
        self.encoder.load(device, dtype)

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        return [self._score(image, c.extra) for image, c in zip(self.encoder.candidates(batch), batch)]

    def _score(self, image: Tensor, extra: Mapping[str, Any]) -> Score:
        values = (extra.get(name) for name in ("category", "truth"))
        taste = self._taste(id_text(extra["user"]), *(None if value is None else id_text(value) for value in values))
        if taste is None:
            return Score(None, error=f"user {extra['user']!r} has no history")
        return Score(self.options.scale * float(image @ taste))

    def _taste(self, user: str, category: str | None, truth: str | None) -> Tensor | None:
        """Return the mean of the user's items as a unit vector [D], cached; None without a history."""
        key = (user, category, truth)
        if key not in self.tastes:
            rows = self.users.get(user, [])
            if truth is not None:
                rows = [liked for liked in rows if liked.item != truth]
            if category is not None:
                rows = [liked for liked in rows if liked.category == category] or rows
            self.tastes[key] = self._mean(rows[-self.options.most :])
        return self.tastes[key]

    def _mean(self, rows: Sequence[Liked]) -> Tensor | None:
        from torch.nn.functional import normalize

        if not rows:
            return None
        try:
            images = [rgb(liked.path) for liked in rows]
        except OSError as error:
            raise UsageError(
                f"personalization.history: {self.path} names an image that cannot be read: {error}."
            ) from error
        embeddings = self.encoder.images(images, normalize=self.options.items == "unit")
        return normalize(embeddings.mean(0), dim=0)


plugin = Personalization
