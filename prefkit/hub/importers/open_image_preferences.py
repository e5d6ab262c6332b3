"""open-image-preferences (binarized): prompt, chosen and rejected image, and the model that made each image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prefkit.hub.importing.cells import items, picture, table_rows
from prefkit.hub.importing.readers import Row, parquet_columns
from prefkit.hub.importing.records import Asked, Item, Workplace
from prefkit.types import Comparison

EXTRA = ("evolution", "category", "sub_category")
READ = ["prompt", "chosen", "rejected", "chosen_model", "rejected_model", *EXTRA]


@dataclass(frozen=True)
class OpenImagePreferencesOptions:
    #: column that holds the prompt
    prompt: str = "prompt"


@dataclass(frozen=True)
class OpenImagePreferences:
    options: OpenImagePreferencesOptions
    Options = OpenImagePreferencesOptions

    @staticmethod
    def sniff(source: Path) -> str | None:
        fits = {"prompt", "chosen", "rejected"} <= parquet_columns(source)
        return "it has prompt, chosen and rejected" if fits else None

    def read(self, source: str, work: Workplace) -> Iterator[Item]:
        yield from items(table_rows(source, work, [*READ, self.options.prompt]), self._item)

    def _item(self, row: Row) -> Item:
        pictures = tuple(picture(side, row, side, f"{side}_model") for side in ("chosen", "rejected"))
        extra = {key: row.values[key] for key in EXTRA if row.values.get(key)}
        asked = Asked(str(row.values.get(self.options.prompt) or ""), row.split, extra)
        return Item(row.where, asked, pictures, (Comparison("chosen", "rejected", "a", "people"),))


plugin = OpenImagePreferences
