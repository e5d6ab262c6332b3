"""Any table (csv, jsonl, json, Parquet, datasets id) by --map prompt=...,image_a=...,image_b=...,winner=..."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefkit.errors import UsageError
from prefkit.hub.importing.cells import FAULTS, image_cell, reason, table_rows
from prefkit.hub.importing.readers import Row
from prefkit.hub.importing.records import Asked, Item, Picture, Workplace
from prefkit.paths import nfc, shown
from prefkit.types import Comparison, Score, digest

PLACES = ("prompt", "image_a", "image_b", "winner", "votes_a", "votes_b", "probability", "model_a", "model_b", "seed_a",
          "seed_b", "judge", "aspect", "split")  # fmt: skip
OUTCOMES = ("a", "b", "tie", "none")
USUAL = {"a": "a|image_a", "b": "b|image_b", "tie": "tie", "none": ""}


@dataclass(frozen=True)
class TableOptions:
    #: place=column,... with the places prompt, image_a, image_b, winner; also votes_a, votes_b (instead of winner), probability, model_a, model_b, seed_a, seed_b, judge, aspect, split; score.NAME=column is a rating of image_a
    map: str = ""
    #: what the winner column writes, as in a=left|1,b=right|2,tie=both|neither,none=skip; null: a, b, tie, or empty
    values: str | None = None


class Table:
    Options = TableOptions

    def __init__(self, options: TableOptions) -> None:
        self.map = _assignments(options.map, "map", PLACES)
        given = _assignments(options.values, "values", OUTCOMES) if options.values else USUAL
        self.outcomes = {word: outcome for outcome, words in given.items() for word in words.split("|")}
        missing = [place for place in ("prompt", "image_a") if place not in self.map]
        if missing:
            raise UsageError(f"import: --map lacks {' and '.join(missing)}; as in --map prompt=caption,image_a=left.")
        voted = "winner" in self.map or {"votes_a", "votes_b"} <= set(self.map)
        if voted and "image_b" not in self.map:
            raise UsageError("import: --map has a winner but no image_b. Name its column.")

    @staticmethod
    def sniff(source: Path) -> str | None:
        return None  # which column is what has to be said

    def read(self, source: str, work: Workplace) -> Iterator[Item]:
        path = Path(source).expanduser()
        root = path if path.is_dir() else path.parent
        looked = False
        for row in table_rows(source, work, sorted(set(self.map.values()))):
            if row.error is not None:
                yield Item(row.where, error=row.error)
                continue
            if not looked:
                looked = True
                absent = sorted(set(self.map.values()) - set(row.values))
                if absent:
                    raise UsageError(
                        f"{row.where}: no column {', '.join(absent)}; it has {', '.join(map(str, row.values))}."
                    )
            try:
                yield self._item(row, root)
            except FAULTS as error:
                yield Item(row.where, error=reason(error))

    def _item(self, row: Row, root: Path) -> Item:
        def value(place: str) -> Any:
            found = row.values.get(self.map[place]) if place in self.map else None
            return None if found == "" or (isinstance(found, float) and math.isnan(found)) else found

        pictures = []
        for side in ("a", "b"):
            if f"image_{side}" in self.map:
                data, path = image_cell(value(f"image_{side}"), row.folder, True, root)
                seed, model = value(f"seed_{side}"), value(f"model_{side}")
                extra = {} if model is None else {"model": str(model)}
                pictures.append(Picture(side, data, path, None if seed is None else int(seed), extra))
        verdict = self._verdict(value)
        split = value("split") if "split" in self.map else row.split
        scores = [(place, column) for place, column in self.map.items() if place.startswith("score.")]
        found = [("a", place.removeprefix("score."), Score(float(row.values[column]))) for place, column in scores
                 if row.values.get(column) not in (None, "")]  # fmt: skip
        asked = Asked(str(value("prompt") or ""), None if split is None else str(split))
        return Item(row.where, asked, tuple(pictures), () if verdict is None else (verdict,), found)

    def _verdict(self, value: Any) -> Comparison | None:
        judge, probability = value("judge"), value("probability")
        p = None if probability is None else float(probability)
        if p is not None and not 0 <= p <= 1:
            raise ValueError(f"the probability is {p}; it lies between 0 and 1")
        if "winner" in self.map:
            outcome = self._outcome(value("winner"))
        elif {"votes_a", "votes_b"} <= set(self.map):
            one, two = float(value("votes_a") or 0), float(value("votes_b") or 0)
            if one < 0 or two < 0:
                raise ValueError(f"votes of {one:g} and {two:g}: none can be below 0")
            p = one / (one + two) if one + two else None
            outcome = "none" if p is None else "a" if one > two else "b" if two > one else "tie"
        else:
            return None
        if outcome == "none":
            return None
        if "winner" in self.map and p not in (None, 0.5) and outcome == ("a" if p < 0.5 else "b"):
            raise ValueError(f"the winner is {outcome}, but the probability, which is that image_a is better, is {p:g}")
        name = "people" if judge is None else "user-" + digest("table", str(judge), length=12)
        return Comparison("a", "b", outcome, name, p, aspect=str(value("aspect") or ""))

    def _outcome(self, found: Any) -> str:
        word = "" if found is None else _word(found)
        if word not in self.outcomes:
            known = ", ".join(repr(w) for w in self.outcomes)
            raise ValueError(
                f"the winner is {shown(word)!r}, but only {known} are known; say what it means with --values"
            )
        return self.outcomes[word]


def _word(value: Any) -> str:
    """As people write it: 1.0 as 1."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _assignments(text: str, flag: str, places: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        place, equals, column = part.partition("=")
        rating = flag == "map" and place.startswith("score.") and len(place) > len("score.")
        if not equals or (place not in places and not rating):
            raise UsageError(
                f"import: --{flag} {part!r} is not understood: write PLACE=... with one of {', '.join(places)}."
            )
        if place in found:
            raise UsageError(f"import: --{flag} gives {place} twice.")
        found[place] = nfc(column)
    return found


plugin = Table
