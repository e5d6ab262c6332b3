"""Any table (csv, jsonl, json, Parquet, Hub dataset); its columns are found by their names, or named by --map."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prefkit.errors import UsageError
from prefkit.hub.importing.cells import image_cell, items, judge_name, outcome, table_rows
from prefkit.hub.importing.columns import Mapping, mapping_of
from prefkit.hub.importing.readers import SUFFIXES, Row, columns_of, files
from prefkit.hub.importing.records import Asked, Item, Picture, Workplace
from prefkit.output import note
from prefkit.paths import nfc, shown
from prefkit.types import Comparison, Score

PLACES = ("prompt", "chosen", "rejected", "image_a", "image_b", "winner", "votes_a", "votes_b", "probability", "model_a", "model_b", "seed_a",
          "seed_b", "judge", "aspect", "split")  # fmt: skip
SIDES = ("chosen", "rejected")
OUTCOMES = ("a", "b", "tie", "none")
USUAL = {"a": "a|image_a", "b": "b|image_b", "tie": "tie", "none": ""}


@dataclass(frozen=True)
class TableOptions:
    #: KEY=COLUMN,... with the keys prompt and chosen, rejected, or prompt, image_a, image_b, winner; also votes_a, votes_b (instead of winner), probability, model_a, model_b, seed_a, seed_b, judge, aspect, split; score.NAME=column is a rating of image_a; unset: by the columns' names, if these are unambiguous
    map: str = ""
    #: meaning of the winner column's values, e.g. a=left|1,b=right|2,tie=both|neither,none=skip; null: a, b, tie, empty
    values: str | None = None


class Table:
    Options = TableOptions

    def __init__(self, options: TableOptions) -> None:
        values = _assignments(options.values, "values", OUTCOMES) if options.values else USUAL
        self.outcomes = {word: winner for winner, words in values.items() for word in words.split("|")}
        self.values_given = bool(options.values)
        self.map: dict[str, str] = {}
        if options.map:
            self._use(_assignments(options.map, "map", PLACES))

    def _use(self, mapping: dict[str, str]) -> None:
        """Set the mapping. Raises UsageError if it lacks a place."""
        self.decided = "chosen" in mapping or "rejected" in mapping
        if self.decided and {"image_a", "image_b", "winner", "votes_a", "votes_b"} & mapping.keys():
            raise UsageError("import: --map has chosen or rejected and also image_a, image_b or a verdict. Keep one.")
        missing = [place for place in ("prompt", *(SIDES if self.decided else ("image_a",))) if place not in mapping]
        if missing:
            raise UsageError(
                f"import: --map lacks {' and '.join(missing)}; write --map prompt=COLUMN,image_a=COLUMN or "
                "--map prompt=COLUMN,chosen=COLUMN,rejected=COLUMN."
            )
        self.votes = {"votes_a", "votes_b"} <= set(mapping)
        if ("winner" in mapping or self.votes) and "image_b" not in mapping:
            raise UsageError("import: --map has a winner but no image_b. Add image_b=COLUMN.")
        self.map = {dict(zip(SIDES, ("image_a", "image_b"))).get(place, place): name for place, name in mapping.items()}

    @staticmethod
    def sniff(source: Path) -> str | None:
        try:
            tables = [path for path in files(source) if path.suffix.lower() in SUFFIXES]
        except UsageError:
            return None
        found = mapping_of(sorted(columns_of(tables[0]))) if tables else None
        return None if found is None or found.doubts else "its columns have known names"

    def read(self, source: str, work: Workplace) -> Iterator[Item]:
        path = Path(source).expanduser()
        root = path if path.is_dir() else path.parent
        rows = table_rows(source, work, sorted(set(self.map.values())) or None)
        if not self.map:
            rows = self._mapped(rows, source)
        yield from items(self._checked(rows), partial(self._item, root))

    def _mapped(self, rows: Iterator[Row], source: str) -> Iterator[Row]:
        """Yield the rows, after reading the mapping from the columns of the first usable row. Raises UsageError."""
        for row in rows:
            if row.error is None and not self.map:
                self._guess(row, source)
            if self.map or row.error is not None:
                yield row

    def _guess(self, row: Row, source: str) -> None:
        found = mapping_of(row.values)
        if found.doubts:
            raise UsageError(
                f"import: {source} has the columns {shown(', '.join(row.values), 300)}, but {'; '.join(found.doubts)}. "
                f"Choose with --map, for example {_proposal(found.places)}."
            )
        self._use(found.places)
        note(f"{source}: {found.flag()} (read from the names of the columns)")
        columns = {_word(self.map[f"image_{side}"]): side for side in ("a", "b") if f"image_{side}" in self.map}
        if not self.values_given:
            self.outcomes |= columns
        word = None if "winner" not in self.map else _word(row.values.get(self.map["winner"]) or "")
        if word is not None and word not in self.outcomes:
            raise UsageError(
                f"import: column {self.map['winner']} of {source} holds {shown(word)!r}, which names no winner. Say what "
                f"its values mean, for example --values a={shown(word, 20) or '1'},b=OTHER."
            )

    def _checked(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Yield the rows. Raises UsageError if the first usable row lacks a column of --map."""
        checked = False
        for row in rows:
            absent = sorted(set(self.map.values()) - set(row.values)) if not checked and row.error is None else []
            checked = checked or row.error is None
            if absent:
                columns = ", ".join(map(str, row.values))
                raise UsageError(
                    f"{row.where}: no column {', '.join(absent)}, which --map names; the columns are {columns}."
                )
            yield row

    def _item(self, root: Path, row: Row) -> Item:
        def value(place: str) -> Any:
            cell = row.values.get(self.map[place]) if place in self.map else None
            return None if cell == "" or (isinstance(cell, float) and math.isnan(cell)) else cell

        pictures = []
        for side in ("a", "b"):
            if f"image_{side}" in self.map:
                data, path = image_cell(value(f"image_{side}"), row.folder, True, root)
                seed, model = value(f"seed_{side}"), value(f"model_{side}")
                extra = {} if model is None else {"model": str(model)}
                pictures.append(Picture(side, data, path, None if seed is None else int(seed), extra))
        verdict = self._verdict(value)
        split = value("split") if "split" in self.map else row.split
        scores = [
            ("a", place.removeprefix("score."), Score(float(row.values[column])))
            for place, column in self.map.items()
            if place.startswith("score.") and row.values.get(column) not in (None, "")
        ]
        asked = Asked(str(value("prompt") or ""), None if split is None else str(split))
        return Item(row.where, asked, tuple(pictures), () if verdict is None else (verdict,), scores)

    def _verdict(self, value: Any) -> Comparison | None:
        judge, probability = value("judge"), value("probability")
        p = None if probability is None else float(probability)
        if p is not None and not 0 <= p <= 1:
            raise ValueError(f"the probability is {p}; it must be between 0 and 1")
        if "winner" in self.map:
            winner = self._winner(value("winner"))
        elif self.votes:
            one, two = float(value("votes_a") or 0), float(value("votes_b") or 0)
            if one < 0 or two < 0:
                raise ValueError(f"votes of {one:g} and {two:g}: votes cannot be negative")
            p = one / (one + two) if one + two else None
            winner = "none" if p is None else outcome(one, two)
        elif self.decided:
            winner = "a"
        else:
            return None
        if winner == "none":
            return None
        if "winner" in self.map and p not in (None, 0.5) and winner == ("a" if p < 0.5 else "b"):
            raise ValueError(f"the winner is {winner}, but the probability that image_a is better is {p:g}")
        return Comparison("a", "b", winner, judge_name("table", judge), p, aspect=str(value("aspect") or ""))

    def _winner(self, cell: Any) -> str:
        word = "" if cell is None else _word(cell)
        if word not in self.outcomes:
            known = ", ".join(repr(w) for w in self.outcomes)
            raise ValueError(f"the winner is {shown(word)!r}, but only {known} are known; define it with --values")
        return self.outcomes[word]


def _proposal(places: dict[str, str]) -> str:
    images = {} if {"chosen", "image_a"} & places.keys() else {"chosen": "COLUMN", "rejected": "COLUMN"}
    chosen = {"prompt": places.get("prompt", "COLUMN"), **places, **images}
    return Mapping(chosen).flag()


def _word(value: Any) -> str:
    """Convert a cell to text; whole numbers become integers, 1.0 -> "1"."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _assignments(text: str, flag: str, places: tuple[str, ...]) -> dict[str, str]:
    columns: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        place, equals, column = part.partition("=")
        rating = flag == "map" and place.startswith("score.") and len(place) > len("score.")
        if not equals or (place not in places and not rating):
            raise UsageError(
                f"import: --{flag} {part!r} is invalid: write KEY=..., where KEY is one of {', '.join(places)}"
                f"{' or score.NAME' if flag == 'map' else ''}."
            )
        if place in columns:
            raise UsageError(f"import: --{flag} contains {place} twice. Remove one.")
        columns[place] = nfc(column)
    return columns


plugin = Table
