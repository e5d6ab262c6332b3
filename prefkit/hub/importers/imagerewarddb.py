"""ImageRewardDB: images rated and ranked per prompt (metadata-*.parquet or train_1.json, with zips of images)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from prefkit.errors import UsageError
from prefkit.hub.importing.archives import Images, ImagesOptions
from prefkit.hub.importing.cells import FAULTS, image_cell, ranked, reason
from prefkit.hub.importing.readers import Row, columns_of, rows
from prefkit.hub.importing.records import Asked, Item, Picture, Workplace
from prefkit.hub.importing.walk import leave_rest
from prefkit.types import Score

RATINGS = ("overall_rating", "image_text_alignment_rating", "fidelity_rating", "rank")
NEEDS = {"prompt", "prompt_id", "rank", "overall_rating"}


@dataclass(frozen=True)
class ImageRewardDB:
    options: ImagesOptions
    Options = ImagesOptions

    @staticmethod
    def sniff(source: Path) -> str | None:
        fits = any(columns_of(table) >= NEEDS for table in _tables(source)[:4])
        return "it has prompt_id, rank and overall_rating" if fits else None

    def read(self, source: str, work: Workplace) -> Iterator[Item]:
        path = Path(source).expanduser()
        tables = _tables(path)
        if not tables:
            raise UsageError(f"import: {source} has no metadata-*.parquet or .json. Give the folder of ImageRewardDB.")
        images = Images(path, self.options.images, work)
        for table in tables:
            # rows of one prompt are consecutive
            for prompt, group in groupby(rows(str(table)), lambda row: row.values.get("prompt_id")):
                members = list(group)
                if prompt is None:  # the rows may have different prompts, and must not be compared
                    missing = "prompt_id is missing, so the images of one prompt cannot be grouped"
                    yield from (Item(row.where, error=missing) for row in members)
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
    values = members[0].values
    pictures = [_picture(str(number), row, images) for number, row in enumerate(members)]
    scores = [
        (str(number), rating, Score(float(row.values[rating])))
        for number, row in enumerate(members)
        for rating in RATINGS
        if row.values.get(rating) is not None
    ]
    verdicts = ranked([row.values.get("rank") for row in members], "people")
    extra = {"classification": values["classification"]} if values.get("classification") else {}
    where = members[0].where + (f" to {members[-1].where.rsplit(' ', 1)[-1]}" if len(members) > 1 else "")
    asked = Asked(str(values["prompt"] or ""), members[0].split, extra)
    return Item(where, asked, tuple(pictures), tuple(verdicts), scores)


def _picture(key: str, row: Row, images: Images) -> Picture:
    if row.values.get("image") is not None:
        return Picture(key, *image_cell(row.values["image"], row.folder))
    name = row.values["image_path"]
    # 'images/train/train_1/x.webp' is in 'images/train/train_1.zip'
    folder = re.fullmatch(r"(.+)/[^/]+", str(name))
    return Picture(key, path=images.path(name, folder[1] + ".zip" if folder else None))


plugin = ImageRewardDB
