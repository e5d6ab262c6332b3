"""How near an image is to what its user has liked: CLIP similarity to the user's history, text-blind.

    value = cos(E(image), mean of E(h) over the history h)

over the user's items of the request's category; over the whole history where there is none of that category; no
score where there is no history at all. FashionDPO (arXiv 2504.12900, section 4.2) rewards this with at most ten
items, unnormalised embeddings and 100 times the cosine: `items: raw, scale: 100, most: 10`. The default gives every
item the same say. A model tuned on this score is better judged by another one.

A request names its `user`; `category` and `truth` (an item that must not count, being the answer) are optional. The
history is a table of `user, image` with optional `category` and `item`; image paths start at the table's folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prefkit import tiny
from prefkit.errors import UsageError
from prefkit.images import rgb
from prefkit.paths import named
from prefkit.score.encoder import Encoder
from prefkit.types import Candidate, Score, ScorerSpec

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PersonalizationOptions:
    #: .csv or .parquet with the columns user, image and optionally category, item; or tiny (embedded)
    history: str = ""
    #: open_clip architecture, local-dir:FOLDER, hf-hub:owner/name, or tiny (embedded)
    model: str = "ViT-H-14"
    #: open_clip tag or path of a checkpoint; not used for local-dir, hf-hub and tiny
    pretrained: str | None = "laion2b_s32b_b79k"
    #: unit (every item weighs the same) | raw (by the length of its embedding, as published)
    items: Literal["unit", "raw"] = "unit"
    #: the last so many items of a user and category; 0 = all
    most: int = 0
    scale: float = 1.0


class Personalization:
    Options = PersonalizationOptions
    requires = frozenset({"image", "user"})
    scope = "absolute"

    def __init__(self, options: PersonalizationOptions) -> None:
        if not options.history:
            raise UsageError(
                "personalization: `history` is not set: give a table of user and image (.csv or .parquet)."
            )
        self.options = options
        self.path = Path(tiny.HISTORY if options.history == tiny.NAME else options.history).expanduser()
        self.encoder = Encoder(options.model, options.pretrained)
        self.tastes: dict[tuple[Any, ...], Tensor | None] = {}

    def spec(self) -> ScorerSpec:
        from prefkit.models.revision import weights_revision
        from prefkit.types import digest

        o = self.options
        names = sorted({str(name) for name in self.history()["image"]})
        images = digest([(name, weights_revision(self.path.parent / name)) for name in names])
        return ScorerSpec(
            "personalization",
            "1",
            weights=self.encoder.weights(),
            revision=self.encoder.revision(),
            preprocessing=f"the model's own evaluation transform; history {weights_revision(self.path)}, images {images}",
            formula=f"{o.scale:g} * cos(image, mean of {o.items} embeddings of the last {o.most or 'all'} items)",
            range=(-o.scale, o.scale),
            licence="that of the weights",
        )

    def history(self) -> Any:
        """The table as a DataFrame. Raises UsageError: no such file, no such column, an image that is not there."""
        import pandas as pd

        try:
            table = (pd.read_parquet if self.path.suffix == ".parquet" else pd.read_csv)(self.path)
        except (OSError, ValueError) as error:
            raise UsageError(f"personalization.history: {self.path} could not be read: {error}.") from error
        missing = {"user", "image"} - set(table.columns)
        if missing:
            raise UsageError(f"personalization.history: {self.path} has no column {', '.join(sorted(missing))}.")
        for name in table["image"]:
            try:
                found = named(self.path.parent, str(name)).is_file()
            except ValueError as error:
                raise UsageError(f"personalization.history: {self.path}: {error}.") from error
            if not found:
                raise UsageError(f"personalization.history: {self.path} names {name}, which is not there.")
        return table

    def load(self, device: str, dtype: str) -> None:
        """Raises UsageError for a history that cannot be read, and for weights that open_clip does not have."""
        self.users = {str(user): rows for user, rows in self.history().groupby("user", sort=False)}
        self.encoder.load(device, dtype)

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        seen = self.encoder.candidates(batch)
        return [self._score(image, c.extra) for image, c in zip(seen, batch)]

    def _score(self, image: Tensor, extra: Mapping[str, Any]) -> Score:
        taste = self._taste(str(extra["user"]), extra.get("category"), extra.get("truth"))
        if taste is None:
            return Score(None, error=f"user {extra['user']!r} has no history")
        return Score(self.options.scale * float(image @ taste))

    def _taste(self, user: str, category: Any, truth: Any) -> Tensor | None:
        """[D] unit vector, or None. Kept, since all candidates of a request share it."""
        key = (user, category, truth)
        if key not in self.tastes:
            rows = self.users.get(user)
            if rows is not None and truth is not None and "item" in rows:
                rows = rows[rows["item"].astype(str) != str(truth)]
            if rows is not None and category is not None and "category" in rows:
                same = rows[rows["category"].astype(str) == str(category)]
                rows = same if len(same) else rows
            self.tastes[key] = self._mean(list(rows["image"])[-self.options.most :]) if rows is not None else None
        return self.tastes[key]

    def _mean(self, images: Sequence[str]) -> Tensor | None:
        from torch.nn.functional import normalize

        if not images:
            return None
        try:
            opened = [rgb(named(self.path.parent, name)) for name in images]
        except OSError as error:
            raise UsageError(
                f"personalization.history: {self.path} names an image that cannot be read: {error}."
            ) from error
        found = self.encoder.images(opened, normalize=self.options.items == "unit")
        return normalize(found.mean(0), dim=0)


plugin = Personalization
