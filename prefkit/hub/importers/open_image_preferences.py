"""open-image-preferences (binarized): prompt, chosen, rejected as images, and which model made each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prefkit.hub.importing.cells import FAULTS, image_cell, reason, table_rows
from prefkit.hub.importing.readers import files, first
from prefkit.hub.importing.records import Asked, Item, Picture, Workplace
from prefkit.types import Comparison

EXTRA = ("evolution", "category", "sub_category")
READ = ["prompt", "chosen", "rejected", "chosen_model", "rejected_model", *EXTRA]


@dataclass(frozen=True)
class OpenImagePreferencesOptions:
    #: the column with the prompt
    prompt: str = "prompt"


class OpenImagePreferences:
    Options = OpenImagePreferencesOptions

    def __init__(self, options: OpenImagePreferencesOptions) -> None:
        self.options = options

    @staticmethod
    def sniff(source: Path) -> str | None:
        if source.is_dir() and next(source.rglob("*.parquet"), None) is None:
            return None
        if source.is_file() and source.suffix != ".parquet":
            return None
        return (
            "it has prompt, chosen and rejected"
            if {"prompt", "chosen", "rejected"} <= set(first(files(source)[0]))
            else None
        )

    def read(self, source: str, work: Workplace) -> Iterator[Item]:
        for row in table_rows(source, work, [*READ, self.options.prompt]):
            if row.error is not None:
                yield Item(row.where, error=row.error)
                continue
            pictures = []
            try:
                for side in ("chosen", "rejected"):
                    model = row.values.get(f"{side}_model")
                    data, path = image_cell(row.values.get(side), row.folder)
                    pictures.append(Picture(side, data, path, extra={"model": model} if model else {}))
            except FAULTS as error:
                yield Item(row.where, error=f"{side}: {reason(error)}")
                continue
            extra = {key: row.values[key] for key in EXTRA if row.values.get(key)}
            asked = Asked(str(row.values.get(self.options.prompt) or ""), row.split, extra)
            yield Item(row.where, asked, tuple(pictures), (Comparison("chosen", "rejected", "a", "people"),))


plugin = OpenImagePreferences
