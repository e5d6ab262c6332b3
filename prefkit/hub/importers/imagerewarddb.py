"""ImageRewardDB: images with ratings and ranks within their prompt (metadata-*.parquet or train_1.json, with zips)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, groupby
from pathlib import Path
from typing import Any

from prefkit.errors import UsageError
from prefkit.hub.importing.cells import FAULTS, image_cell, reason
from prefkit.hub.importing.image_lookup import Images
from prefkit.hub.importing.readers import Row, first, rows
from prefkit.hub.importing.records import Asked, Item, Picture, Workplace
from prefkit.hub.importing.walk import leave_rest
from prefkit.types import Comparison, Score

RATINGS = ("overall_rating", "image_text_alignment_rating", "fidelity_rating", "rank")
NEEDS = {"prompt", "prompt_id", "rank", "overall_rating"}


@dataclass(frozen=True)
class ImageRewardDBOptions:
    #: folder with the images, where you unpacked the zips yourself; null: beside the tables, zips are unpacked
    images: str | None = None


class ImageRewardDB:
    Options = ImageRewardDBOptions

    def __init__(self, options: ImageRewardDBOptions) -> None:
        self.options = options

    @staticmethod
    def sniff(source: Path) -> str | None:
        return (
            "it has prompt_id, rank and overall_rating"
            if any(set(first(f)) >= NEEDS for f in _tables(source)[:4])
            else None
        )

    def read(self, source: str, work: Workplace) -> Iterator[Item]:
        path = Path(source).expanduser()
        tables = _tables(path)
        if not tables:
            raise UsageError(
                f"import: {source} holds no metadata-*.parquet and no json. Give the folder of ImageRewardDB."
            )
        folder = path if path.is_dir() else path.parent
        images = Images(Path(self.options.images).expanduser() if self.options.images else folder, work)
        for table in tables:
            of_table = rows(str(table))
            for _, group in groupby(
                of_table, lambda row: row.values.get("prompt_id")
            ):  # rows of a prompt stand together
                members = list(group)
                if (
                    members[0].values.get("prompt_id") is None
                ):  # rows of whatever prompts: none is compared with another
                    yield from (
                        Item(row.where, error="there is no prompt_id, which says what belongs together")
                        for row in members
                    )
                    continue
                try:
                    yield _item(members, images)
                except FAULTS as error:
                    yield Item(members[0].where, error=reason(error))
        leave_rest(path, tables, work)


def _tables(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if source.suffix in (".parquet", ".json", ".jsonl") else []
    metadata = sorted(source.glob("metadata-*.parquet")) or sorted(source.rglob("*.parquet"))
    return metadata or sorted(source.rglob("*.json"))


def _item(members: list[Row], images: Images) -> Item:
    asked = members[0].values
    pictures, scores = [], []
    ranks: list[Any] = []
    for number, row in enumerate(members):
        key = str(number)
        if row.values.get("image") is not None:
            data, path = image_cell(row.values["image"], row.folder)
            pictures.append(Picture(key, data, path))
        else:
            pictures.append(Picture(key, path=images.path(row.values["image_path"], _zip_of(row.values["image_path"]))))
        for rating in RATINGS:
            value: Any = row.values.get(rating)
            if value is not None:
                scores.append((key, rating, Score(float(value))))
        ranks.append(row.values.get("rank"))
    verdicts = [
        Comparison(str(i), str(j), "a" if ranks[i] < ranks[j] else "b" if ranks[j] < ranks[i] else "tie", "people")
        for i, j in combinations(range(len(ranks)), 2)
        if ranks[i] is not None and ranks[j] is not None
    ]
    extra = {"classification": asked["classification"]} if asked.get("classification") else {}
    where = members[0].where + (f" to {members[-1].where.rsplit(' ', 1)[-1]}" if len(members) > 1 else "")
    return Item(
        where, Asked(str(asked["prompt"] or ""), members[0].split, extra), tuple(pictures), tuple(verdicts), scores
    )


def _zip_of(name: str) -> str | None:
    """'images/train/train_1/x.webp' -> 'images/train/train_1.zip', which is where it comes in."""
    found = re.fullmatch(r"(.+)/[^/]+", str(name))
    return found[1] + ".zip" if found else None


plugin = ImageRewardDB
