"""DiffusionNFT's evaluation: evaluation_results.jsonl with sample_id, prompt, scores and image_path, and images/.

`scripts/evaluation.py` of NVlabs/DiffusionNFT (24af5554) writes them with --save_images: one image per prompt, the
scores of its reward models by name, and the prompt's metadata, which becomes the request's extra. A score of -10 means
that a reward model does not apply (a GenEval task other than the prompt's), so it is not imported. With several
processes, a sample may be listed twice; the second row is left out. Import the evaluations of several checkpoints into
one run, each with its own --name, to pair their images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from prefkit.errors import UsageError
from prefkit.hub.importing.archives import Images, ImagesOptions
from prefkit.hub.importing.cells import items
from prefkit.hub.importing.readers import Row, columns_of, rows
from prefkit.hub.importing.records import Asked, Item, Picture, Workplace
from prefkit.hub.importing.walk import leave_rest
from prefkit.types import Score

NAME = "evaluation_results.jsonl"
NEEDS = {"sample_id", "prompt", "scores"}
NOT_APPLICABLE = -10.0


@dataclass(frozen=True)
class DiffusionNFT:
    options: ImagesOptions
    Options = ImagesOptions

    @staticmethod
    def sniff(source: Path) -> str | None:
        file = _file(source)
        return f"{file.name} has sample_id, prompt and scores" if file and columns_of(file) >= NEEDS else None

    def read(self, source: str, work: Workplace) -> Iterator[Item]:
        path = Path(source).expanduser()
        file = _file(path)
        if file is None:
            raise UsageError(f"import: {source} has no {NAME}. Give the --output_dir of DiffusionNFT's evaluation.py.")
        images = Images(file, self.options.images, work)
        yield from items(_once(rows(str(file)), work), partial(_item, images=images))
        leave_rest(path, [file, path / "average_scores.json"], work)


def _file(source: Path) -> Path | None:
    file = source / NAME if source.is_dir() else source
    return file if file.is_file() and file.suffix == ".jsonl" else None


def _once(rows: Iterator[Row], work: Workplace) -> Iterator[Row]:
    seen = set()
    for row in rows:
        sample = str(row.values.get("sample_id")) if row.error is None else None
        if sample is not None and sample in seen:
            work.leave_out("row that repeats a sample_id", 1)
            continue
        seen.add(sample)
        yield row


def _item(row: Row, images: Images) -> Item:
    place, scores = row.values.get("image_path"), row.values["scores"]
    if not place:
        raise ValueError("image_path is missing; run DiffusionNFT's evaluation.py with --save_images")
    if not isinstance(scores, dict):
        raise ValueError("scores is not an object")
    # the path starts at the folder in which the program ran; the images are in images/ next to the results
    path = images.path(f"images/{PurePosixPath(str(place).replace(chr(92), '/')).name}")
    known = {name: float(value) for name, value in scores.items() if value is not None}
    ratings = [
        ("image", name, Score(value))
        for name, value in known.items()
        if math.isfinite(value) and value != NOT_APPLICABLE
    ]
    extra = {name: value for name, value in (row.values.get("metadata") or {}).items() if name != "prompt"}
    return Item(
        row.where, Asked(str(row.values["prompt"] or ""), extra=extra), (Picture("image", path=path),), (), ratings
    )


plugin = DiffusionNFT
