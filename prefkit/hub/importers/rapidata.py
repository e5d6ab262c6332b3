"""Rapidata: prompt, image1, image2 and how many votes each got (or weighted shares); ties where they are equal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefkit.hub.importing.cells import FAULTS, image_cell, reason, table_rows
from prefkit.hub.importing.readers import files, first
from prefkit.hub.importing.records import Asked, Item, Picture, Workplace
from prefkit.types import Comparison

WEIGHTED = "weighted_results_image{}_"


@dataclass(frozen=True)
class RapidataOptions:
    #: what was asked, stored as the aspect of the verdicts (preference, alignment, coherence); null: as the columns say
    aspect: str | None = None


class Rapidata:
    Options = RapidataOptions

    def __init__(self, options: RapidataOptions) -> None:
        self.options = options

    @staticmethod
    def sniff(source: Path) -> str | None:
        if source.is_dir() and next(source.rglob("*.parquet"), None) is None:
            return None
        columns = set(first(files(source)[0])) if source.is_dir() or source.suffix == ".parquet" else set()
        votes = "votes_image1" in columns or any(c.startswith(WEIGHTED.format(1)) for c in columns)
        return "it has image1, image2 and their votes" if {"prompt", "image1", "image2"} <= columns and votes else None

    def read(self, source: str, work: Workplace) -> Iterator[Item]:
        for row in table_rows(source, work):
            if row.error is not None:
                yield Item(row.where, error=row.error)
                continue
            try:
                pictures = []
                for side in ("1", "2"):
                    model = row.values.get(f"model{side}")
                    data, path = image_cell(row.values.get(f"image{side}"), row.folder)
                    pictures.append(Picture(side, data, path, extra={"model": model} if model else {}))
                verdicts = tuple(self._verdicts(row.values))
            except FAULTS as error:
                yield Item(row.where, error=reason(error))
                continue
            split = None if row.split == "train" else row.split  # all that Rapidata publishes is called train
            yield Item(row.where, Asked(str(row.values.get("prompt") or ""), split), tuple(pictures), verdicts)

    def _verdicts(self, values: dict[str, Any]) -> Iterator[Comparison]:
        """One per question asked: the crowd's majority, and its share as the probability."""
        found = {}
        if "votes_image1" in values:
            found[""] = (values["votes_image1"], values.get("votes_image2"))
        for key in values:
            if key.startswith(WEIGHTED.format(1)):
                aspect = key.removeprefix(WEIGHTED.format(1))
                found[aspect] = (values[key], values.get(WEIGHTED.format(2) + aspect))
        for aspect, (one, two) in found.items():
            if one is None or two is None:
                continue
            one, two = float(one), float(two)
            if one < 0 or two < 0:
                raise ValueError(f"votes of {one} and {two}: none can be below 0")
            if not one + two > 0:  # nobody voted, or NaN
                continue
            outcome = "a" if one > two else "b" if two > one else "tie"
            yield Comparison("1", "2", outcome, "rapidata", one / (one + two), order="both",
                             aspect=self.options.aspect or aspect)  # fmt: skip


plugin = Rapidata
