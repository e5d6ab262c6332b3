"""What a picture of the embedded wardrobe really shows, read by program: item, colour, background and pattern.

For evaluation only: it is the truth that gains are measured by, so it must not be a reward. `measure`:

- `met`: the share of what the prompt names that is really there: the item, and the colour, the background and its
  pattern where the prompt names them. A prompt that names no colour is not scored on it: any colour will do, and
  there is no aspect `colour`. An outfit (`a handbag to go with a red dress`) asks for the handbag alone, in any colour.
- `palette`: 1 where the colour seen is one of `palette`, else 0.
- `compatible`: 1 where the colour seen goes with that of the outfit's other piece (the rule is in
  prefkit/tiny/rules.py), else 0; failed, with the reason, where the prompt has no outfit.

All three give one aspect, 0 or 1, for each thing that the prompt names, and for each that it leaves open one called
`which_colour` and so on with the number of what was seen, so that its diversity can be told; the text says all of it in
words. Where no item of the wardrobe explains the picture (prefkit/tiny/truth.py), item and colour count as missing. A
prompt outside the wardrobe's grammar is a failed score.

Accuracy on 1,000 fresh renders of each kind of request, all four patterns alike
(`python pipelines/tiny/check_truth.py --n 1000`; `met`: scored 1 where all is there; `caught`: of renders with one
thing changed, exactly that aspect is 0):

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

FORMULAS = {
    "met": "share of the named attributes that are there",
    "palette": "1 if the colour is one of the palette",
    "compatible": "1 if the colour goes with the outfit",
}


@dataclass(frozen=True)
class AttributesOptions:
    #: met: share of the request that is there; palette: colour in the palette; compatible: colour goes with the outfit
    measure: Literal["met", "palette", "compatible"] = "met"
    #: the colours that `palette` counts
    palette: tuple[str, ...] = ()


class Attributes:
    Options = AttributesOptions
    requires = frozenset({"image", "prompt"})
    scope = "absolute"

    def __init__(self, options: AttributesOptions) -> None:
        from prefkit.tiny.domain import COLOURS

        unknown = sorted(set(options.palette) - set(COLOURS))
        if unknown:
            raise UsageError(f"attributes: palette has no {', '.join(unknown)}; its colours are {', '.join(COLOURS)}.")
        if (options.measure == "palette") != bool(options.palette):
            raise UsageError(
                "attributes: `measure: palette` and `palette: [red, ...]` go together; set both, or neither."
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
            verified=True,
            evaluation_only=True,
        )

    def load(self, device: str, dtype: str) -> None:
        """Nothing to load."""

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        return [self._one(c.prompt, seen) for c, seen in zip(batch, _read([c.pil() for c in batch]))]

    def _one(self, prompt: str, seen: Seen) -> Score:
        from prefkit.tiny.captions import asked

        try:
            wanted = asked(prompt)
        except UsageError as error:
            return Score(None, text=str(seen), error=str(error))
        aspects = met(wanted, seen)
        everything = aspects | which(wanted, seen)
        if self.options.measure == "compatible" and wanted.beside is None:
            return Score(None, everything, str(seen), f"{prompt!r} names no outfit that a colour could go with")
        return Score(self._value(wanted, seen, aspects), everything, str(seen))

    def _value(self, wanted: Asked, seen: Seen, aspects: dict[str, float]) -> float:
        from prefkit.tiny.rules import compatible

        if self.options.measure == "met":
            return sum(aspects.values()) / len(aspects)
        if self.options.measure == "palette":
            return float(seen.colour in self.options.palette)
        assert wanted.beside is not None
        return float(seen.colour is not None and compatible(seen.colour, wanted.beside[1]))


def met(wanted: Asked, seen: Seen) -> dict[str, float]:
    """Attribute -> 1 where it is as the prompt names it, else 0; only what the prompt names."""
    named = {name: getattr(wanted, name) for name in ("item", "colour", "background", "pattern")}
    return {name: float(getattr(seen, name) == value) for name, value in named.items() if value is not None}


_SEEN: dict[bytes, Seen] = {}  # a recipe often asks for two measures of the same pictures


def _read(images: Sequence[Image]) -> list[Seen]:
    """`read_many`, each picture once in a process."""
    from prefkit.tiny.truth import read_many

    keys = [sha256(repr(image.size).encode() + image.tobytes()).digest() for image in images]
    new = {key: image for key, image in zip(keys, images) if key not in _SEEN}
    _SEEN.update(zip(new, read_many(list(new.values()))))
    return [_SEEN[key] for key in keys]


def which(wanted: Asked, seen: Seen) -> dict[str, float]:
    """The number, in its list, of what was seen of all that the prompt leaves open: where it names a background, two
    different ones are a mistake and no diversity. What could not be read is left out."""
    from prefkit.tiny.domain import BACKGROUNDS, COLOURS, PATTERNS

    lists = {"colour": list(COLOURS), "background": list(BACKGROUNDS), "pattern": list(PATTERNS)}
    left_open = {name: getattr(seen, name) for name in lists if getattr(wanted, name) is None}
    return {f"which_{name}": float(lists[name].index(v)) for name, v in left_open.items() if v is not None}


plugin = Attributes
