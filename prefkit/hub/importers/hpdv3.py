"""HPDv3: json with prompt, path1 (preferred), path2, model1, model2, confidence, choice_dist; images in split tars."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from prefkit.errors import UsageError
from prefkit.hub.importing.archives import Images, ImagesOptions
from prefkit.hub.importing.cells import items
from prefkit.hub.importing.readers import Row, columns_of, json_rows, split_of_name
from prefkit.hub.importing.records import Asked, Item, Picture, Workplace
from prefkit.hub.importing.walk import leave_rest
from prefkit.types import Comparison

NEEDS = {"prompt", "path1", "path2"}


@dataclass(frozen=True)
class HPDv3:
    options: ImagesOptions
    Options = ImagesOptions

    @staticmethod
    def sniff(source: Path) -> str | None:
        fits = any(columns_of(file) >= NEEDS for file in _files(source)[:4])
        return "its json has prompt, path1 and path2" if fits else None

    def read(self, source: str, work: Workplace) -> Iterator[Item]:
        path = Path(source).expanduser()
        files = [file for file in _files(path) if NEEDS & columns_of(file)] or _files(path)
        if not files:
            raise UsageError(f"import: {source} has no .json. Give the folder of HPDv3's files, or a .json file.")
        images = Images(path, self.options.images, work)
        for file in files:
            yield from items(json_rows(file, split_of_name(file.name)), partial(_item, images=images))
        leave_rest(path, files, work)


def _files(source: Path) -> list[Path]:
    return sorted(source.glob("*.json")) if source.is_dir() else [source] if source.suffix == ".json" else []


def _item(row: Row, images: Images) -> Item:
    pictures = []
    for side in ("1", "2"):
        model = row.values.get(f"model{side}")
        path = images.path(row.values[f"path{side}"])
        pictures.append(Picture(side, path=path, extra={"model": model} if model else {}))
    votes = row.values.get("choice_dist")
    p = None
    if isinstance(votes, list) and len(votes) == 2 and min(votes) >= 0 and sum(votes) > 0:
        p = max(votes) / sum(votes)  # path1 is the preferred image, but choice_dist may list its votes first or second
    verdict = Comparison("1", "2", "a", "people", probability=p, order="both" if p is not None else "ab")
    return Item(row.where, Asked(str(row.values["prompt"] or ""), row.split), tuple(pictures), (verdict,))


plugin = HPDv3
