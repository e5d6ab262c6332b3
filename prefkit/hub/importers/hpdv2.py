"""HPDv2: train.json (file_path, human_preference) and test.json (image_path, rank, raw_annotations) with archives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from prefkit.errors import UsageError
from prefkit.hub.importing.cells import FAULTS, reason
from prefkit.hub.importing.image_lookup import Images
from prefkit.hub.importing.readers import first, json_items
from prefkit.hub.importing.records import Asked, Item, Picture, Workplace
from prefkit.hub.importing.walk import leave_rest
from prefkit.types import Comparison, digest

FILES = {"train.json": "train", "test.json": "test"}


@dataclass(frozen=True)
class HPDv2Options:
    #: folder with the images, where you unpacked the archives yourself; null: beside the json, archives are unpacked
    images: str | None = None


class HPDv2:
    Options = HPDv2Options

    def __init__(self, options: HPDv2Options) -> None:
        self.options = options

    @staticmethod
    def sniff(source: Path) -> str | None:
        found = [file for file in _files(source) if {"prompt"} < set(first(file))]
        keys = set(first(found[0])) if found else set()
        ranked = keys & {"human_preference", "raw_annotations"} or {"rank", "image_path"} <= keys
        return "its json has prompt and human_preference or raw_annotations" if ranked and "path1" not in keys else None

    def read(self, source: str, work: Workplace) -> Iterator[Item]:
        path = Path(source).expanduser()
        found = _files(path)
        if not found:
            raise UsageError(f"import: {source} holds neither {' nor '.join(FILES)}. Give the folder of HPDv2's files.")
        folder = path if path.is_dir() else path.parent
        images = Images(Path(self.options.images).expanduser() if self.options.images else folder, work)
        for file in found:
            for number, row in enumerate(json_items(file), 1):
                where = f"{file} row {number}"
                try:
                    yield _item(where, row, FILES.get(file.name), images)
                except FAULTS as error:
                    yield Item(where, error=reason(error))
        leave_rest(path, found, work)


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if source.suffix == ".json" else []
    return [source / name for name in FILES if (source / name).is_file()]


def _item(where: str, row: dict[str, Any], split: str | None, images: Images) -> Item:
    names = row.get("file_path") or row.get("image_path")
    if not isinstance(names, list) or len(names) < 2:
        raise ValueError("file_path (or image_path) must list two images or more")
    pictures = tuple(Picture(str(i), path=images.path(name)) for i, name in enumerate(names))
    verdicts: list[Comparison] = []
    if "human_preference" in row:
        liked = _numbers(row["human_preference"], len(names), "human_preference")
        verdicts = _verdicts([-value for value in liked], _judge(row.get("user_hash")))
    elif row.get("raw_annotations"):
        for one in row["raw_annotations"]:
            verdicts += _verdicts(_numbers(one["rank"], len(names), "rank"), _judge(one.get("user_hash")))
    elif "rank" in row:
        verdicts = _verdicts(_numbers(row["rank"], len(names), "rank"), "people")
    return Item(where, Asked(str(row["prompt"] or ""), split), pictures, tuple(verdicts))


def _numbers(values: Any, wanted: int, name: str) -> list[float]:
    if not isinstance(values, list) or len(values) != wanted:
        raise ValueError(f"{name} must have {wanted} numbers, one for each image")
    return [float(value) for value in values]


def _judge(user: Any) -> str:
    return "people" if user is None else "user-" + digest("hpdv2", str(user), length=12)


def _verdicts(ranks: list[float], judge: str) -> list[Comparison]:
    """Every two images of one ranking (the smaller rank is better); equal ranks are ties."""
    return [
        Comparison(str(i), str(j), "a" if ranks[i] < ranks[j] else "b" if ranks[j] < ranks[i] else "tie", judge)
        for i, j in combinations(range(len(ranks)), 2)
    ]


plugin = HPDv2
