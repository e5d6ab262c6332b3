"""Rapidata: prompt, image1, image2 and the votes (or weighted votes) for each image; equal votes are ties."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefkit.hub.importing.cells import items, outcome, picture, table_rows
from prefkit.hub.importing.readers import Row, parquet_columns
from prefkit.hub.importing.records import Asked, Item, Workplace
from prefkit.types import Comparison

WEIGHTED = "weighted_results_image{}_"


@dataclass(frozen=True)
class RapidataOptions:
    #: aspect to store with the verdicts (preference, alignment, coherence); null: taken from the column names
    aspect: str | None = None


@dataclass(frozen=True)
class Rapidata:
    options: RapidataOptions
    Options = RapidataOptions

    @staticmethod
    def sniff(source: Path) -> str | None:
        columns = parquet_columns(source)
        votes = "votes_image1" in columns or any(c.startswith(WEIGHTED.format(1)) for c in columns)
        return "it has image1, image2 and their votes" if {"prompt", "image1", "image2"} <= columns and votes else None

    def read(self, source: str, work: Workplace) -> Iterator[Item]:
        yield from items(table_rows(source, work), self._item)

    def _item(self, row: Row) -> Item:
        pictures = tuple(picture(side, row, f"image{side}", f"model{side}") for side in ("1", "2"))
        split = None if row.split == "train" else row.split  # Rapidata calls every split train
        asked = Asked(str(row.values.get("prompt") or ""), split)
        return Item(row.where, asked, pictures, tuple(self._verdicts(row.values)))

    def _verdicts(self, values: dict[str, Any]) -> Iterator[Comparison]:
        """Yield the majority verdict on each aspect; its probability is image1's fraction of the votes."""
        votes = {}
        if "votes_image1" in values:
            votes[""] = (values["votes_image1"], values.get("votes_image2"))
        for key in values:
            if key.startswith(WEIGHTED.format(1)):
                aspect = key.removeprefix(WEIGHTED.format(1))
                votes[aspect] = (values[key], values.get(WEIGHTED.format(2) + aspect))
        for aspect, pair in votes.items():
            if None in pair:
                continue
            one, two = map(float, pair)
            if one < 0 or two < 0:
                raise ValueError(f"votes of {one} and {two}: votes cannot be negative")
            if one + two > 0:  # False without votes and for NaN
                p, aspect = one / (one + two), self.options.aspect or aspect
                yield Comparison("1", "2", outcome(one, two), "rapidata", p, order="both", aspect=aspect)


plugin = Rapidata
