"""HPDv3: json with prompt, path1 (preferred), path2, model1, model2, confidence, choice_dist; images in tar parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefkit.errors import UsageError
from prefkit.hub.importing.cells import FAULTS, reason
from prefkit.hub.importing.image_lookup import Images
from prefkit.hub.importing.readers import first, json_items, split_of_name
from prefkit.hub.importing.records import Asked, Item, Picture, Workplace
from prefkit.hub.importing.walk import leave_rest
from prefkit.types import Comparison

NEEDS = {"prompt", "path1", "path2"}


@dataclass(frozen=True)
class HPDv3Options:
    #: folder with the images, where you unpacked the archives yourself; null: beside the json, archives are unpacked
    images: str | None = None


class HPDv3:
    Options = HPDv3Options

    def __init__(self, options: HPDv3Options) -> None:
        self.options = options

    @staticmethod
    def sniff(source: Path) -> str | None:
        return (
            "its json has prompt, path1 and path2" if any(set(first(f)) >= NEEDS for f in _files(source)[:4]) else None
        )

    def read(self, source: str, work: Workplace) -> Iterator[Item]:
        path = Path(source).expanduser()
        found = [file for file in _files(path) if NEEDS & set(first(file))] or _files(path)
        if not found:
            raise UsageError(f"import: {source} holds no .json. Give the folder of HPDv3's files, or its json.")
        folder = path if path.is_dir() else path.parent
        images = Images(Path(self.options.images).expanduser() if self.options.images else folder, work)
        for file in found:
            split = split_of_name(file.name)
            for number, row in enumerate(json_items(file), 1):
                where = f"{file} row {number}"
                try:
                    yield _item(where, row, split, images)
                except FAULTS as error:
                    yield Item(where, error=reason(error))
        leave_rest(path, found, work)


def _files(source: Path) -> list[Path]:
    return sorted(source.glob("*.json")) if source.is_dir() else [source] if source.suffix == ".json" else []


def _item(where: str, row: dict[str, Any], split: str | None, images: Images) -> Item:
    pictures = []
    for side in ("1", "2"):
        model = row.get(f"model{side}")
        pictures.append(Picture(side, path=images.path(row[f"path{side}"]), extra={"model": model} if model else {}))
    shares = row.get("choice_dist")
    p = None
    if isinstance(shares, list) and len(shares) == 2 and min(shares) >= 0 and sum(shares) > 0:
        p = max(shares) / sum(shares)  # path1 is the preferred one, whichever order the shares are in
    verdict = Comparison("1", "2", "a", "people", probability=p, order="both" if p is not None else "ab")
    return Item(where, Asked(str(row["prompt"] or ""), split), tuple(pictures), (verdict,))


plugin = HPDv3
