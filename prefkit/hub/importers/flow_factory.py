"""Flow-Factory's offline DPO: train.jsonl with an input (prompt, media) and its chosen and rejected media.

The exporter of the same name (prefkit/hub/exporters/flow_factory.py) describes the lines and names their source. The
paths of input images become the column `inputs` of the request, so that edits of different images are different
requests; the images themselves are not stored in the run. test.jsonl has only prompts and is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prefkit.errors import UsageError
from prefkit.hub.importing.archives import Images, ImagesOptions
from prefkit.hub.importing.cells import items
from prefkit.hub.importing.readers import Row, columns_of, rows
from prefkit.hub.importing.records import Asked, Item, Picture, Workplace
from prefkit.hub.importing.walk import leave_rest
from prefkit.types import Comparison

NAME = "train.jsonl"
NEEDS = {"schema_version", "input", "supervision"}
SIDES = ("chosen", "rejected")
INPUT = "named as an input image (only its path is kept)"


@dataclass(frozen=True)
class FlowFactory:
    options: ImagesOptions
    Options = ImagesOptions

    @staticmethod
    def sniff(source: Path) -> str | None:
        file = _file(source)
        return f"{file.name} has schema_version, input and supervision" if file and columns_of(file) >= NEEDS else None

    def read(self, source: str, work: Workplace) -> Iterator[Item]:
        path = Path(source).expanduser()
        file = _file(path)
        if file is None:
            raise UsageError(f"import: {source} has no {NAME}. Give the folder of a dataset of Flow-Factory.")
        yield from items(rows(str(file)), partial(_item, images=Images(file, self.options.images, work), work=work))
        leave_rest(path, [file], work)


def _file(source: Path) -> Path | None:
    file = source / NAME if source.is_dir() else source
    return file if file.is_file() and file.suffix == ".jsonl" else None


def _item(row: Row, images: Images, work: Workplace) -> Item:
    given, supervision = row.values["input"], row.values["supervision"]
    if supervision.get("type") != "preference":
        raise ValueError(f"the supervision is {supervision.get('type')!r}; only preference has a winner and a loser")
    pictures = []
    for side in SIDES:
        names = _images(supervision[side])
        if len(names) != 1:
            raise ValueError(f"{side} has {len(names)} images; a pair needs one")
        pictures.append(Picture(side, path=images.path(names[0])))
    inputs = _images(given)
    if inputs:
        work.leave_out(INPUT, len(inputs))
    asked = Asked(str(given["prompt"] or ""), row.split, {"inputs": inputs} if inputs else {})
    return Item(row.where, asked, pictures, (Comparison(*SIDES, "a", "people"),))


def _images(value: Mapping[str, Any]) -> list[str]:
    """Return the paths of the images in `media`. Raises ValueError for other media, such as videos."""
    media = value.get("media") or []
    other = next((entry.get("type") for entry in media if entry.get("type") != "image"), None)
    if other is not None:
        raise ValueError(f"it has media of the type {other!r}; only images are read")
    return [entry["path"] for entry in media]


plugin = FlowFactory
