"""Convert the archive of DiFashion (iFashion, Polyvore-U; arXiv 2402.17279) to the tables that prefkit reads.

    python pipelines/fashion/convert.py ARCHIVE OUT --images FOLDER

ARCHIVE is the folder with `id_cate_dict.npy`, `all_item_image_paths.npy` (or both as `new_*.npy`) and, for any of the splits
train, valid and test:

train.npy, fitb_SPLIT.npy                  {uids, oids, outfits, category}; in fitb_SPLIT, item 0 is the blank
SPLIT_grd.npy                              outfit -> {outfits, category}, with the item that is blank in fitb_SPLIT
SPLIT_history.npy                          user -> category -> items
fitb_SPLIT_retrieval_candidates.npy        optional: user -> outfit -> items, for the column `candidates`

OUT gets the tables of `tables.py`, with absolute paths of the images; valid is called validation. A training outfit has no
blank, so a hash of its name chooses one. Requests and items without a picture in FOLDER are left out and counted.

The files are pickles. Only dictionaries, lists, text and numbers in them are read (pipelines/pickles.py): a pickle that asks
for anything else, a link, a damaged file and an image path that leaves FOLDER are refused, and nothing is written.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tables import TRAIN, Item, Outfit, Wardrobe, write

from prefkit.errors import PrefkitError, UsageError
from prefkit.paths import shown
from prefkit.store.folders import whole_folder
from prefkit.types import digest

sys.path.insert(0, str(Path(__file__).parents[1]))
from pickles import read_npy

SPLITS = {"train": TRAIN, "valid": "validation", "test": "test"}
PAIRS = ("pants", "earrings")  # DiFashion's prompts say "a pair of"


@dataclass(frozen=True)
class Row:
    """A row of train.npy or fitb_SPLIT.npy. items: 0 is the blank."""

    user: str
    outfit: Any
    items: list[int]
    categories: list[str]
    where: str


class Archive:
    """The .npy files of a folder. Raises UsageError for a file that is refused or does not have DiFashion's layout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise UsageError(f"{folder} is not a folder. Unpack the archive and give the folder with train.npy.")
        names = self.read("new_id_cate_dict", "id_cate_dict", kind=dict)
        self.categories = {key: name for key, name in names.items() if isinstance(name, str) and name.isprintable()}
        self.paths = self.read("new_all_item_image_paths", "all_item_image_paths", kind=(np.ndarray, list))

    def read(self, *names: str, kind: Any, optional: bool = False) -> Any:
        """Return the content of the first of these files that exists; {} if the file is optional and missing."""
        found = [path for name in names if os.path.lexists(path := self.folder / f"{name}.npy")]
        if not found and optional:
            return {}
        if not found:
            raise UsageError(f"{self.folder} has no {names[-1]}.npy. It must be a folder of DiFashion's archive.")
        try:
            content = read_npy(found[0])
        except ValueError as error:
            raise UsageError(f"{found[0]} is refused: {error}.") from error
        if not isinstance(content, kind):
            raise UsageError(f"{found[0]} holds a {type(content).__name__}, unlike DiFashion's {names[-1]}.npy.")
        return content

    def has(self, name: str) -> bool:
        return os.path.lexists(self.folder / f"{name}.npy")

    def rows(self, name: str) -> Iterator[Row]:
        """Yield the rows of train.npy or fitb_SPLIT.npy."""
        table = self.read(name, kind=dict)
        columns = [table.get(column) for column in ("uids", "oids", "outfits", "category")]
        if not all(isinstance(column, (list, np.ndarray)) for column in columns):
            raise UsageError(f"{self.folder / name}.npy must hold the lists uids, oids, outfits and category.")
        if len({len(column) for column in columns}) > 1:
            raise UsageError(f"{self.folder / name}.npy: the lists uids, oids, outfits and category differ in length.")
        lists = [column.tolist() if isinstance(column, np.ndarray) else column for column in columns]
        for number, (user, outfit, items, categories) in enumerate(zip(*lists)):
            where = f"{self.folder / name}.npy, row {number}"
            _named(user, where), _named(outfit, where)
            numbers = _numbers(items, where)
            named = [self.category(key, where) for key in _numbers(categories, where)]
            if len(numbers) != len(named) or not numbers:
                raise UsageError(f"{where}: the outfit has {len(numbers)} items and {len(named)} categories.")
            yield Row(str(user), outfit, numbers, named, where)

    def category(self, key: int, where: str) -> str:
        if key not in self.categories:
            raise UsageError(f"{where}: id_cate_dict.npy has no name for category {key}.")
        return self.categories[key]


class Pictures:
    """Image files of items. missing: number of items without one."""

    def __init__(self, paths: Any, folder: Path) -> None:
        if not folder.is_dir():
            raise UsageError(f"--images: {folder} is not a folder.")
        self.paths, self.folder = paths, folder.resolve()
        self.found: dict[int, Path | None] = {}

    def path(self, item: int, where: str) -> Path | None:
        """Return the item's file, None if it is missing. Raises UsageError for a file outside of the folder."""
        if item not in self.found:
            if not 0 < item < len(self.paths):
                raise UsageError(f"{where}: item {item} is not in all_item_image_paths.npy ({len(self.paths)} items).")
            name = self.paths[item]
            entry = f"all_item_image_paths.npy, item {item}: {shown(name)!r}"
            if not isinstance(name, str) or not name.isprintable():
                raise UsageError(f"{entry} is not a path.")
            try:
                path = (self.folder / name.replace("\\", "/")).resolve()
                exists = path.is_file()
            except (OSError, RuntimeError) as error:  # a name that is too long, links in a circle
                raise UsageError(f"{entry} is not a usable path: {error}.") from error
            if not path.is_relative_to(self.folder):
                raise UsageError(f"{entry} leads out of {self.folder}.")
            self.found[item] = path if exists else None
        return self.found[item]


class Converter:
    """Collects the items and outfits of an archive. counts: what was left out."""

    def __init__(self, archive: Archive, pictures: Pictures) -> None:
        self.archive, self.pictures = archive, pictures
        self.wardrobe = Wardrobe({}, [], {})
        self.known: dict[str, Outfit] = {}  # by name
        self.counts: Counter[str] = Counter()

    def convert(self) -> Wardrobe:
        """Raises UsageError if no request is left."""
        for split in SPLITS:
            name = "train" if split == "train" else f"fitb_{split}"
            if self.archive.has(name):
                self._split(split, name)
        if not self.wardrobe.outfits:
            left = f"{self.counts['requests']} requests were left out, because their pictures are missing"
            reason = left if self.counts["requests"] else "there is none of train.npy, fitb_valid.npy and fitb_test.npy"
            raise UsageError(f"{self.archive.folder} has no request to convert: {reason}.")
        return self.wardrobe

    def _split(self, split: str, name: str) -> None:
        truths = {} if split == "train" else self.archive.read(f"{split}_grd", kind=dict)
        candidates = self.archive.read(f"fitb_{split}_retrieval_candidates", kind=dict, optional=True)
        for row in self.archive.rows(name):
            blank, items = self._blank(row, truths, split)
            ids = [self.item(item, category, row.where) for item, category in zip(items, row.categories)]
            if None in ids:
                self.counts["requests"] += 1
                continue
            of_user = candidates.get(_key(row.user, candidates), {})
            offered = of_user.get(row.outfit) if isinstance(of_user, Mapping) else None
            extra = {} if offered is None else {"candidates": [str(i) for i in _numbers(offered, row.where)]}
            prompts = tuple(prompt(category) for category in row.categories)
            given = (tuple(str(i) for i in items), tuple(row.categories), blank, prompts[blank], prompts, extra)
            self._add(Outfit(f"{split}-{row.user}-{row.outfit}", row.user, SPLITS[split], *given), row.where)
        self._history(split)

    def _add(self, outfit: Outfit, where: str) -> None:
        """Add an outfit. A row that repeats an earlier one adds nothing; one that contradicts it raises UsageError."""
        known = self.known.setdefault(outfit.name, outfit)
        if known is outfit:
            self.wardrobe.outfits.append(outfit)
        elif known != outfit:
            raise UsageError(f"{where}: an earlier row has the same user and outfit id, but other items.")

    def _blank(self, row: Row, truths: Mapping[Any, Any], split: str) -> tuple[int, list[int]]:
        """Return the position of the blank, and all items of the outfit."""
        if split == "train":
            return int(digest(row.user, row.outfit, length=8), 16) % len(row.items), row.items
        truth = truths.get(row.outfit)
        if not isinstance(truth, Mapping) or "outfits" not in truth:
            raise UsageError(f"{row.where}: {split}_grd.npy has no outfit {row.outfit}.")
        items = _numbers(truth["outfits"], f"{split}_grd.npy, outfit {row.outfit}")
        same = len(items) == len(row.items) and all(a in (0, b) for a, b in zip(row.items, items))
        if row.items.count(0) != 1 or not same:
            raise UsageError(f"{row.where}: it must be outfit {row.outfit} of {split}_grd.npy with one item 0.")
        return row.items.index(0), items

    def _history(self, split: str) -> None:
        name = f"{split}_history"
        for user, by_category in self.archive.read(name, kind=dict, optional=True).items():
            where = f"{name}.npy, user {_named(user, name)}"
            if not isinstance(by_category, Mapping):
                raise UsageError(f"{where}: the history must be a dictionary from categories to items.")
            for key, items in by_category.items():
                category = self.archive.category(key, where)
                ids = [self.item(item, category, where) for item in _numbers(items, where)]
                self.counts["items of histories"] += ids.count(None)
                liked = self.wardrobe.history.setdefault(SPLITS[split], {}).setdefault(str(user), [])
                liked += [item for item in ids if item is not None]

    def item(self, number: int, category: str, where: str) -> str | None:
        """Add an item to the wardrobe and return its id; None if its picture is missing."""
        path = self.pictures.path(number, where)
        if path is None:
            return None
        self.wardrobe.items.setdefault(str(number), Item(str(path), category))
        return str(number)


def prompt(category: str) -> str:
    pair = "pair of " if any(word in category for word in PAIRS) else ""
    return f"A photo of a {pair}{category}, on white background, high quality"


def _key(user: str, table: Mapping[Any, Any]) -> Any:
    """Return the user's key in a table, where it may be a number."""
    return int(user) if user not in table and user.isdigit() else user


def _named(value: Any, where: str) -> Any:
    """Return the id of a user or an outfit. Raises UsageError unless it is a number or printable text."""
    if type(value) is int or (isinstance(value, str) and value.isprintable()):
        return value
    raise UsageError(f"{where}: {shown(value)!r} is not the id of a user or an outfit.")


def _numbers(values: Any, where: str) -> list[int]:
    values = values.tolist() if isinstance(values, np.ndarray) else values
    if not isinstance(values, (list, tuple)) or not all(type(value) is int for value in values):
        raise UsageError(f"{where}: {shown(values)} is not a list of whole numbers.")
    return list(values)


def convert(archive: Path, out: Path, images: Path) -> str:
    """Write the tables and return a summary. Raises UsageError, before anything is written."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists. Name a new folder, or remove this one.")
    content = Archive(archive)
    converter = Converter(content, Pictures(content.paths, images))
    wardrobe = converter.convert()
    with whole_folder(out, manifest=False) as folder:
        counts = write(wardrobe, folder)
    left = [
        f"{count} {name} left out, because pictures are missing" for name, count in converter.counts.items() if count
    ]
    return "\n".join([*(f"{out / name}: {count:,} rows" for name, count in counts.items()), *left])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, metavar="ARCHIVE")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="folder of the items' pictures")
    args = parser.parse_args(arguments)
    try:
        print(convert(args.archive, args.out, args.images))
    except PrefkitError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
