"""Pick-a-Pic v1 and v2, and what prefkit pair and push write: jpg_0, jpg_1, label_0, label_1, caption."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefkit.hub.importing.cells import FAULTS, image_cell, reason, table_rows
from prefkit.hub.importing.readers import Row, files, first
from prefkit.hub.importing.records import Asked, Item, Picture, Workplace
from prefkit.types import Comparison, digest

SIDES = ("0", "1")
NEEDS = {"jpg_0", "jpg_1", "label_0", "caption"}
READ = ("jpg_0", "jpg_1", "label_0", "label_1", "caption", "has_label", "model_0", "model_1", "seed_0", "seed_1",
        "user_id", "created_at", "image_0_uid", "image_1_uid", "p", "request_id", "split")  # fmt: skip


@dataclass(frozen=True)
class PickAPicOptions:
    #: the column with the prompt
    caption: str = "caption"


class PickAPic:
    Options = PickAPicOptions

    def __init__(self, options: PickAPicOptions) -> None:
        self.options = options

    @staticmethod
    def sniff(source: Path) -> str | None:
        tables = _tables(source)
        return "it has jpg_0, jpg_1, label_0 and caption" if tables and set(first(tables[0])) >= NEEDS else None

    def read(self, source: str, work: Workplace) -> Iterator[Item]:
        for row in table_rows(source, work, [*READ, self.options.caption]):
            if row.error is not None:
                yield Item(row.where, error=row.error)
                continue
            try:
                yield self._item(row)
            except FAULTS as error:
                yield Item(row.where, error=reason(error))

    def _item(self, row: Row) -> Item:
        values = row.values
        pictures = []
        for side in SIDES:
            data, path = image_cell(values[f"jpg_{side}"], row.folder)
            model = values.get(f"model_{side}")
            pictures.append(Picture(side, data, path, values.get(f"seed_{side}"), {"model": model} if model else {}))
        outcome = outcome_of(values)
        verdicts: tuple[Comparison, ...] = ()
        if outcome is not None:
            user = values.get("user_id")
            judge = "people" if user is None else "user-" + digest("pickapic", str(user), length=12)
            p = values.get("p") if outcome != "tie" else 0.5
            p = 1 - p if p is not None and outcome == "b" else p
            verdicts = (Comparison("0", "1", outcome, judge, p, time=_seconds(values.get("created_at"))),)
        return Item(row.where, Asked(str(values[self.options.caption] or ""), row.split), tuple(pictures), verdicts)


def _seconds(date: Any) -> float | None:
    """Seconds since 1970 of a date in ISO form, which is in UTC unless it names a time zone. None where it is no date."""
    try:
        found = datetime.fromisoformat(date)
    except (TypeError, ValueError):
        return None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def outcome_of(values: dict[str, Any]) -> str | None:
    """'a' (image 0), 'b', 'tie' (labels 0.5), or None where nobody voted. Raises ValueError for labels that say nothing."""
    if values.get("has_label") is False:
        return None
    label, other = (None if value is None else float(value) for value in (values["label_0"], values.get("label_1")))
    if label is None:
        return None
    if other is not None and abs(label + other - 1) > 1e-6:
        raise ValueError(f"label_0 {label} and label_1 {other} do not add up to 1")
    found = {1.0: "a", 0.0: "b", 0.5: "tie"}.get(label)
    if found is None:
        raise ValueError(f"label_0 is {label}; it must be 0, 0.5 or 1")
    return found


def _tables(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if source.suffix == ".parquet" else []
    return files(source) if next(source.rglob("*.parquet"), None) else []


plugin = PickAPic
