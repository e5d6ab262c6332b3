"""Pick-a-Pic v1 and v2, or pairs written by `prefkit pair` or push: jpg_0, jpg_1, label_0, label_1, caption."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefkit.hub.importing.cells import items, judge_name, picture, table_rows
from prefkit.hub.importing.readers import Row, parquet_columns
from prefkit.hub.importing.records import Asked, Item, Workplace
from prefkit.types import Comparison

NEEDS = {"jpg_0", "jpg_1", "label_0", "caption"}
READ = ("jpg_0", "jpg_1", "label_0", "label_1", "caption", "has_label", "model_0", "model_1", "seed_0", "seed_1",
        "user_id", "created_at", "image_0_uid", "image_1_uid", "p", "request_id", "split")  # fmt: skip


@dataclass(frozen=True)
class PickAPicOptions:
    #: column that holds the prompt
    caption: str = "caption"


@dataclass(frozen=True)
class PickAPic:
    options: PickAPicOptions
    Options = PickAPicOptions

    @staticmethod
    def sniff(source: Path) -> str | None:
        return "it has jpg_0, jpg_1, label_0 and caption" if parquet_columns(source) >= NEEDS else None

    def read(self, source: str, work: Workplace) -> Iterator[Item]:
        yield from items(table_rows(source, work, [*READ, self.options.caption]), self._item)

    def _item(self, row: Row) -> Item:
        values = row.values
        pictures = [picture(i, row, f"jpg_{i}", f"model_{i}", values.get(f"seed_{i}")) for i in ("0", "1")]
        winner = outcome_of(values)
        verdicts: tuple[Comparison, ...] = ()
        if winner is not None:
            p = values.get("p") if winner != "tie" else 0.5
            p = 1 - p if p is not None and winner == "b" else p
            judge = judge_name("pickapic", values.get("user_id"))
            verdicts = (Comparison("0", "1", winner, judge, p, time=_seconds(values.get("created_at"))),)
        return Item(row.where, Asked(str(values[self.options.caption] or ""), row.split), tuple(pictures), verdicts)


def _seconds(date: Any) -> float | None:
    """Convert an ISO date (UTC unless it has a time zone) to seconds since 1970; return None for anything else."""
    try:
        parsed = datetime.fromisoformat(date)
    except (TypeError, ValueError):
        return None
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


def outcome_of(values: dict[str, Any]) -> str | None:
    """Return the winner: 'a' (image 0), 'b' (image 1), 'tie' (labels 0.5), or None without a vote.

    Raises ValueError for contradictory labels.
    """
    if values.get("has_label") is False:
        return None
    label, other = (None if value is None else float(value) for value in (values["label_0"], values.get("label_1")))
    if label is None:
        return None
    if other is not None and abs(label + other - 1) > 1e-6:
        raise ValueError(f"label_0 {label} and label_1 {other} do not add up to 1")
    if label not in (0, 0.5, 1):
        raise ValueError(f"label_0 is {label}; it must be 0, 0.5 or 1")
    return {1.0: "a", 0.0: "b", 0.5: "tie"}[label]


plugin = PickAPic
