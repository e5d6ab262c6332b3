"""HPDv2: train.json (file_path, human_preference), test.json (image_path, rank, raw_annotations), image archives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prefkit.errors import UsageError
from prefkit.hub.importing.archives import Images, ImagesOptions
from prefkit.hub.importing.cells import items, judge_name, ranked
from prefkit.hub.importing.readers import Row, columns_of, json_rows
from prefkit.hub.importing.records import Asked, Item, Picture, Workplace
from prefkit.hub.importing.walk import leave_rest
from prefkit.types import Comparison

FILES = {"train.json": "train", "test.json": "test"}


@dataclass(frozen=True)
class HPDv2:
    options: ImagesOptions
    Options = ImagesOptions

    @staticmethod
    def sniff(source: Path) -> str | None:
        rows = [columns_of(file) for file in _files(source)]
        keys = next((row for row in rows if {"prompt"} < row), set())
        verdicts = keys & {"human_preference", "raw_annotations"} or {"rank", "image_path"} <= keys
        fits = verdicts and "path1" not in keys
        return "its json has prompt and human_preference or raw_annotations" if fits else None

    def read(self, source: str, work: Workplace) -> Iterator[Item]:
        path = Path(source).expanduser()
        files = _files(path)
        if not files:
            raise UsageError(f"import: {source} has neither {' nor '.join(FILES)}. Give the folder of HPDv2's files.")
        images = Images(path, self.options.images, work)
        for file in files:
            yield from items(json_rows(file, FILES.get(file.name)), partial(_item, images=images))
        leave_rest(path, files, work)


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if source.suffix == ".json" else []
    return [source / name for name in FILES if (source / name).is_file()]


def _item(row: Row, images: Images) -> Item:
    values = row.values
    names = values.get("file_path") or values.get("image_path")
    if not isinstance(names, list) or len(names) < 2:
        raise ValueError("file_path (or image_path) must list at least two images")
    pictures = tuple(Picture(str(i), path=images.path(name)) for i, name in enumerate(names))
    verdicts: list[Comparison] = []
    if "human_preference" in values:
        votes = _numbers(values["human_preference"], len(names), "human_preference")
        verdicts = ranked([-value for value in votes], judge_name("hpdv2", values.get("user_hash")))
    elif values.get("raw_annotations"):
        for one in values["raw_annotations"]:
            judge = judge_name("hpdv2", one.get("user_hash"))
            verdicts += ranked(_numbers(one["rank"], len(names), "rank"), judge)
    elif "rank" in values:
        verdicts = ranked(_numbers(values["rank"], len(names), "rank"), "people")
    return Item(row.where, Asked(str(values["prompt"] or ""), row.split), pictures, tuple(verdicts))


def _numbers(values: Any, length: int, name: str) -> list[float]:
    if not isinstance(values, list) or len(values) != length:
        raise ValueError(f"{name} must have {length} numbers, one for each image")
    return [float(value) for value in values]


plugin = HPDv2
