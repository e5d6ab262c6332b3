"""Readers for tables: csv, jsonl, json, Parquet, a folder of such files, a saved dataset or a dataset on the Hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from prefkit.errors import UsageError
from prefkit.paths import nfc
from prefkit.tables import SUFFIXES as ALL_SUFFIXES
from prefkit.tables import read, user_path
from prefkit.tables.files import regular
from prefkit.tables.jsons import json_items as json_items
from prefkit.tables.values import plain_row

SUFFIXES = tuple(suffix for suffix in ALL_SUFFIXES if suffix != ".txt")
#: folders that pair and push write next to the splits
FURTHER = ("ties", "lists", "candidates", "comparisons")
HUB = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
SPLIT = re.compile(r"(?:^|[/_.-])(train|training|validation|valid|val|dev|test)(_unique)?(?=[_./-]|$)")


class Row(NamedTuple):
    """A row of a table.

    where: file, row number (from 1) and line. split: taken from the name of the file or folder. folder: the base of
    relative paths. error: the reason why the row cannot be used.
    """

    where: str
    split: str | None
    folder: Path | None
    values: dict[str, Any]
    error: str | None = None


def rows(source: str, columns: list[str] | None = None) -> Iterator[Row]:
    """Yield the rows of a file, of all tables under a folder (sorted by name), or of a Hub dataset (name[:split]).

    A row that cannot be used has an error. Raises UsageError naming the file and row where reading stopped.
    """
    path = user_path(source, "import")
    if not path.exists():
        if not HUB.fullmatch(source):
            raise UsageError(f"import: {source} is neither a file, a folder, nor a Hub dataset such as owner/name.")
        yield from _hub(source)
        return
    if is_saved(path):
        yield from _saved(path)
        return
    for file in files(path):
        split = split_of_name(file.relative_to(path).as_posix() if path.is_dir() else file.name)
        _check_suffix(file)
        for where, values, error in read(file, columns, keep_bad=True):
            yield Row(where, split, file.parent, values, error and error.removeprefix(where).lstrip(": "))


def files(path: Path) -> list[Path]:
    """Return the tables under a folder, or [path] for a file. Raises UsageError if there are none."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        regular(path, f"import: {path}")
    tables = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if any((path / name).exists() for name in ("spec.json", "prefkit.json")):  # written by pair or push
        tables = [p for p in tables if p.suffix.lower() == ".parquet" and not of_further_config(p, path)]
    tables = [p for p in tables if p.suffix.lower() == ".parquet"] or tables
    if not tables:
        raise UsageError(f"import: {path} holds no table, that is, no file ending in {', '.join(SUFFIXES)}.")
    return tables


def is_saved(folder: Path) -> bool:
    """True if the folder was written by `save_to_disk` of Hugging Face `datasets`."""
    return any((folder / name).exists() for name in ("state.json", "dataset_dict.json"))


def of_further_config(file: Path, folder: Path) -> bool:
    """True if `file`, in the folder of a pair set, holds ties, lists, candidates or comparisons instead of pairs."""
    parts = file.relative_to(folder).parts
    return len(parts) > 2 and parts[0] in FURTHER


def split_of_name(name: str) -> str | None:
    """Return the split in a file name: 'data/test_unique-00000-of-00001.parquet' -> 'test_unique'; None without one."""
    match = SPLIT.search(name)
    return None if match is None else match[1] + (match[2] or "")


def columns_of(path: Path) -> set[str]:
    """Return the columns of a table, for `sniff`; empty if the table is empty or cannot be read."""
    try:
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet as pq

            return set(map(nfc, pq.read_schema(regular(path, str(path))).names))
        _check_suffix(path)
        return next((set(row.values) for row in read(path)), set())
    except Exception:  # reading the table later reports the error
        return set()


def parquet_columns(source: Path) -> set[str]:
    """Return the columns of the first Parquet table in a source, for `sniff`; empty if there is none."""
    if source.is_file():
        return columns_of(source) if source.suffix == ".parquet" else set()
    return columns_of(files(source)[0]) if next(source.rglob("*.parquet"), None) else set()


def json_rows(file: Path, split: str | None) -> Iterator[Row]:
    """Yield the objects of a JSON list as rows, for layouts that name their images by path."""
    for number, values in enumerate(json_items(file), 1):
        yield Row(f"{file} row {number}", split, file.parent, values)


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"import: {path} does not end in one of {', '.join(SUFFIXES)}.")


def _saved(path: Path) -> Iterator[Row]:
    import datasets

    saved = datasets.load_from_disk(str(path))
    parts = saved.items() if isinstance(saved, datasets.DatasetDict) else [(split_of_name(path.name), saved)]
    for split, table in parts:
        yield from _dataset(table, f"{path} {split}" if split else str(path), split, path)


def _hub(source: str) -> Iterator[Row]:
    import datasets

    name, _, wanted = source.partition(":")
    try:
        for split in [wanted] if wanted else datasets.get_dataset_split_names(name):
            table = datasets.load_dataset(name, split=split, streaming=True)
            yield from _dataset(table, f"{name}:{split}", split, None)
    except UsageError:
        raise
    except Exception as error:  # `datasets` raises its own, the Hub's and the network's errors
        text = " ".join(str(error).split())[:200]
        raise UsageError(f"import: {source} is neither a local path nor a loadable dataset: {text}") from error


def _dataset(table: Any, name: str, split: str | None, folder: Path | None) -> Iterator[Row]:
    """Yield the rows of a `datasets` table, with images left encoded."""
    import datasets

    for column, feature in (table.features or {}).items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
        elif isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.Image):
            table = table.cast_column(column, datasets.List(datasets.Image(decode=False)))
    for number, row in enumerate(table, 1):
        try:
            values = plain_row({nfc(column): value for column, value in row.items()})
        except ValueError as error:
            raise UsageError(f"{name} row {number}: {error}.") from error
        yield Row(f"{name} row {number}", split, folder, values)
