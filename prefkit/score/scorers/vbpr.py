"""A user's preference for an image: user x item compatibility on visual features, VBPR (He & McAuley, AAAI 2016).

    items: new     value = theta_u . (E f) + beta' . f
    items: known   value = beta_i + gamma_u . gamma_i + theta_u . (E f) + beta' . f

f are the image's features from the encoder that the model was fitted on; `prefkit fit vbpr` stores its name. A
generated image is a new item: it has no latent factors gamma_i and no bias beta_i, and the model's mean for both is 0.
The default `new` is therefore the model's cold-start form, which `prefkit fit vbpr` measures as `auc_visual`. `known`
is for pictures of catalogue items, which the column `item` names; its values are not comparable with those of `new`.

Values are log-odds up to a constant per user: sigmoid(a - b) is the probability that the user prefers the image with
value a to the image with value b. Values of different users are not comparable; `pair` centres them per request. The
score fails for a user whom the model does not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prefkit.paths import nfc
from prefkit.score.fitted import Fitted
from prefkit.tables import id_text
from prefkit.types import Candidate, Score, ScorerSpec


@dataclass(frozen=True)
class VbprOptions:
    #: folder that `prefkit fit vbpr` has written, or its Hub id
    model: str = ""
    #: Hub revision (branch, tag or commit) of the model
    revision: str | None = None
    #: new (generated images: visual terms only) | known (catalogue items, named by `item`)
    items: Literal["new", "known"] = "new"


class VbprScorer:
    Options = VbprOptions
    scope = "absolute"

    def __init__(self, options: VbprOptions) -> None:
        self.options = options
        self.requires = frozenset({"image", "user"} | ({"item"} if options.items == "known" else set()))
        self.fitted = Fitted("vbpr", options.model, options.revision)
        self.encoder = self.fitted.encoder()

    def spec(self) -> ScorerSpec:
        visual = "theta_u.(E f) + beta'.f"
        return ScorerSpec(
            "vbpr",
            "1",
            weights=f"{self.fitted.shown} on {self.encoder.weights()}",
            revision=self.fitted.revision(),
            preprocessing=f"{self.encoder.preprocessing()}; features scaled as fitted",
            formula=visual if self.options.items == "new" else f"beta_i + gamma_u.gamma_i + {visual}",
            licence="that of the encoder and of the interactions",
        )

    def load(self, device: str, dtype: str) -> None:
        """Raises UsageError if the weights are not those of a VBPR model."""
        from prefkit.score.embed.vbpr import Scaling, Vbpr

        state = self.fitted.state()
        self.scaling = Scaling(
            bool(self.fitted.spec["features"]["unit"]),
            state.pop("feature_shift"),
            float(self.fitted.spec["features"]["factor"]),
        )
        self.net = Vbpr.of(state, str(self.fitted.folder))
        self.users = {nfc(name): row for row, name in enumerate(self.fitted.ids("users"))}
        self.known = {nfc(name): row for row, name in enumerate(self.fitted.ids("items"))}
        self.encoder.load(device, dtype)

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        import torch

        errors = [self._unknown(c.extra) for c in batch]
        live = [c for c, error in zip(batch, errors) if error is None]
        values: Iterator[float] = iter(())
        if live:
            users = torch.tensor([self.users[id_text(c.extra["user"])] for c in live])
            scores = self.net.visual(users, self.scaling(self.encoder.candidates(live, normalize=False).cpu()))
            if self.options.items == "known":
                items = torch.tensor([self.known[id_text(c.extra["item"])] for c in live])
                scores = scores + self.net.known(users, items)
            values = iter(scores.tolist())
        return [Score(next(values)) if error is None else Score(None, error=error) for error in errors]

    def _unknown(self, extra: Any) -> str | None:
        """Return an error for a user or item that the model was not fitted on, else None."""
        if id_text(extra["user"]) not in self.users:
            return f"{self.fitted.shown} was not fitted on user {extra['user']!r}"
        if self.options.items == "known" and id_text(extra["item"]) not in self.known:
            return f"{self.fitted.shown} was not fitted on item {extra['item']!r}"
        return None


plugin = VbprScorer
