"""Science-T2I (arXiv 2504.13129): prompt tuples with images of the correct outcome and of the tempting wrong one.

A row has implicit_prompt, explicit_prompt and superficial_prompt (a text, or a list of wordings), explicit_image and
superficial_image (an image, or a list), and usually law and category. The first implicit prompt becomes the request;
`explicit`, `superficial`, `implicit` (all wordings, if there are several) and the other columns become its extra. A
list with one text becomes that text. Each explicit image is preferred to each superficial image of its row. The split
of a request is the row's `split`; without this column, that in the file's name.

The published Parquet files have row groups of 3 GB. Download them: a local file is read row by row, a dataset on the Hub
by row groups. A reader must still decode whole pages. If each column of a row group is a single page, as pyarrow writes
large images by default, the import needs about twice the size of a row group in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from prefkit.hub.importing.cells import FAULTS, image_cell, items, reason, table_rows
from prefkit.hub.importing.readers import Row, parquet_columns
from prefkit.hub.importing.records import Asked, Item, Picture, Workplace
from prefkit.types import Comparison

TIERS = ("implicit", "explicit", "superficial")
SIDES = ("explicit", "superficial")
FURTHER = ("law", "category", "subject", "scene_scoring", "real_scoring")
READ = [*(f"{tier}_prompt" for tier in TIERS), *(f"{side}_image" for side in SIDES), *FURTHER, "split"]
JUDGE = "science_t2i"


@dataclass(frozen=True)
class ScienceT2IOptions:
    #: pair the images at equal positions of the two lists only, instead of each with each
    matched: bool = False


@dataclass(frozen=True)
class ScienceT2I:
    options: ScienceT2IOptions
    Options = ScienceT2IOptions

    @staticmethod
    def sniff(source: Path) -> str | None:
        fits = {"implicit_prompt", "explicit_image", "superficial_image"} <= parquet_columns(source)
        return "it has implicit_prompt, explicit_image and superficial_image" if fits else None

    def read(self, source: str, work: Workplace) -> Iterator[Item]:
        yield from items(table_rows(source, work, READ), self._item)

    def _item(self, row: Row) -> Item:
        texts = {tier: _texts(row, f"{tier}_prompt") for tier in TIERS}
        extra: dict[str, Any] = {tier: words if len(words) > 1 else words[0] for tier, words in texts.items()}
        if len(texts["implicit"]) == 1:
            del extra["implicit"]  # the request's prompt
        extra |= {name: row.values[name] for name in FURTHER if row.values.get(name) not in (None, "", [])}
        pictures = {side: _pictures(row, side) for side in SIDES}
        keys = {side: [picture.key for picture in found] for side, found in pictures.items()}
        pairs = zip(*keys.values()) if self.options.matched else product(*keys.values())
        verdicts = tuple(Comparison(right, wrong, "a", JUDGE) for right, wrong in pairs)
        asked = Asked(texts["implicit"][0], row.values.get("split") or row.split, extra)
        return Item(row.where, asked, (*pictures["explicit"], *pictures["superficial"]), verdicts)


def _texts(row: Row, column: str) -> list[str]:
    """Return the wordings in a cell. Raises ValueError without a text."""
    value = row.values.get(column)
    found = value if isinstance(value, list) else [value]
    texts = [text for text in found if isinstance(text, str) and text.strip()]
    if not texts:
        raise ValueError(f"{column} has no text")
    return texts


def _pictures(row: Row, side: str) -> list[Picture]:
    """Return the images in a cell. Raises ValueError without one."""
    value = row.values.get(f"{side}_image")
    cells = value if isinstance(value, list) else [value]
    if not cells:
        raise ValueError(f"{side}_image is an empty list")
    pictures = []
    for number, cell in enumerate(cells):
        try:
            data, path = image_cell(cell, row.folder)
        except FAULTS as error:
            raise ValueError(f"{side}_image {number}: {reason(error)}") from error
        pictures.append(Picture(f"{side}-{number}", data, path, extra={"tier": side}))
    return pictures


plugin = ScienceT2I
