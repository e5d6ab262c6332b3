"""Item, colour, background and pattern of a picture of the embedded wardrobe, recognized without a trained model.

For evaluation only: gains are measured against these attributes, so they must not be a reward. Choices of `measure`:

- `met`: the fraction of the prompt's attributes that the picture shows: the item, and the colour, background and pattern if
  the prompt names them. A prompt without a colour accepts any colour and has no aspect `colour`. An outfit (`a handbag to
  go with a red dress`) asks for the handbag alone, in any colour.
- `palette`: 1 if the colour in the picture is in the option `palette`, else 0.
- `compatible`: 1 if the colour in the picture goes with the colour of the outfit's other item (prefkit/tiny/rules.py),
  else 0; the score fails if the prompt has no outfit.

Each attribute that the prompt names has an aspect, 0 or 1. Each attribute that the prompt leaves open has an aspect
such as `which_colour`, the index of the recognized value, for measures of diversity. The text describes the picture. If
no item of the wardrobe matches the picture (prefkit/tiny/truth.py), item and colour count as missing. The score fails
for a prompt outside the wardrobe's grammar.

Accuracy on 1,000 new renders of each kind of request, with the four patterns equally often
(`python pipelines/tiny/check_truth.py --n 1000`; `met`: fraction of correct renders with score 1; `caught`: fraction of
renders with one wrong attribute in which exactly that aspect is 0):

| request | item | colour | background | pattern | met | caught |
|---|---|---|---|---|---|---|
| everything named | .992 | 1.000 | 1 | 1 | .992 | .995 |
| colour open | .993 | .997 | 1 | 1 | .993 | .997 |
| background open | .996 | .997 | 1 | 1 | .993 | .995 |
| outfit | .994 | .998 | 1 | 1 | .994 | .997 |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Literal

from prefkit.errors import UsageError
from prefkit.types import Candidate, Score, ScorerSpec

if TYPE_CHECKING:
    from PIL.Image import Image

    from prefkit.tiny.captions import Asked
    from prefkit.tiny.truth import Seen

#: part of stored specs, so the texts must not change
FORMULAS = {
    "met": "share of the named attributes that are there",
    "palette": "1 if the colour is one of the palette",
    "compatible": "1 if the colour goes with the outfit",
}


@dataclass(frozen=True)
class AttributesOptions:
    #: met: fraction of the request that is met; palette: colour in the palette; compatible: colour goes with the outfit
    measure: Literal["met", "palette", "compatible"] = "met"
    #: colours for `measure: palette`
    palette: tuple[str, ...] = ()


class Attributes:
    Options = AttributesOptions
    requires = frozenset({"image", "prompt"})
    scope = "absolute"

    def __init__(self, options: AttributesOptions) -> None:
        from prefkit.tiny.domain import COLOURS

        unknown = sorted(set(options.palette) - set(COLOURS))
        if unknown:
            raise UsageError(
                f"attributes.palette: unknown colours {', '.join(unknown)}; choose from {', '.join(COLOURS)}."
            )
        if (options.measure == "palette") != bool(options.palette):
            raise UsageError(
                "attributes: `measure: palette` and `palette: [red, ...]` belong together; set both, or neither."
            )
        self.options = options

    def spec(self) -> ScorerSpec:
        formula = FORMULAS[self.options.measure]
        if self.options.palette:
            formula += f" {', '.join(sorted(set(self.options.palette)))}"
        return ScorerSpec(
            "attributes",
            "2",
            preprocessing="RGB uint8, box filter to 64 x 64",
            formula=formula,
            range=(0.0, 1.0),
            licence="Apache-2.0",
            verified="no weights",
            evaluation_only=True,
        )

    def load(self, device: str, dtype: str) -> None:
        """Do nothing: this scorer has no weights."""

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        return [self._score(c.prompt, seen) for c, seen in zip(batch, _read([c.pil() for c in batch]))]

    def _score(self, prompt: str, seen: Seen) -> Score:
        from prefkit.tiny.captions import asked

        try:
            wanted = asked(prompt)
        except UsageError as error:
            return Score(None, text=str(seen), error=str(error))
        aspects = met(wanted, seen)
        all_aspects = aspects | which(wanted, seen)
        if self.options.measure == "compatible" and wanted.beside is None:
            return Score(None, all_aspects, str(seen), f"{prompt!r} names no outfit, so no colour is compatible")
        return Score(self._value(wanted, seen, aspects), all_aspects, str(seen))

    def _value(self, wanted: Asked, seen: Seen, aspects: dict[str, float]) -> float:
        from prefkit.tiny.rules import compatible

        if self.options.measure == "met":
            return sum(aspects.values()) / len(aspects)
        if self.options.measure == "palette":
            return float(seen.colour in self.options.palette)
        assert wanted.beside is not None
        return float(seen.colour is not None and compatible(seen.colour, wanted.beside[1]))


def met(wanted: Asked, seen: Seen) -> dict[str, float]:
    """Return {attribute: 1 if the picture shows it, else 0} for all attributes that the prompt names."""
    named = {name: getattr(wanted, name) for name in ("item", "colour", "background", "pattern")}
    return {name: float(getattr(seen, name) == value) for name, value in named.items() if value is not None}


_SEEN: dict[bytes, Seen] = {}  # cache, since recipes often apply two measures to the same pictures


def _read(images: Sequence[Image]) -> list[Seen]:
    """Return the results of `read_many`, computed once per picture and process."""
    from prefkit.tiny.truth import read_many

    keys = [sha256(repr(image.size).encode() + image.tobytes()).digest() for image in images]
    new = {key: image for key, image in zip(keys, images) if key not in _SEEN}
    _SEEN.update(zip(new, read_many(list(new.values()))))
    return [_SEEN[key] for key in keys]


def which(wanted: Asked, seen: Seen) -> dict[str, float]:
    """Return the index of the recognized value for each attribute that the prompt leaves open.

    Attributes that were not recognized, or that the prompt names, are left out: they say nothing about diversity.
    """
    from prefkit.tiny.domain import BACKGROUNDS, COLOURS, PATTERNS

    lists = {"colour": list(COLOURS), "background": list(BACKGROUNDS), "pattern": list(PATTERNS)}
    left_open = {name: getattr(seen, name) for name in lists if getattr(wanted, name) is None}
    return {f"which_{name}": float(lists[name].index(v)) for name, v in left_open.items() if v is not None}


plugin = Attributes
