"""Where requests come from: a table, a file with a prompt a line, the embedded wardrobe, or a datasets id."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from prefkit import tiny
from prefkit.config import Requests
from prefkit.errors import UsageError
from prefkit.paths import nfc
from prefkit.tables import SUFFIXES, Row, read, user_path
from prefkit.tables.values import plain_row

HUB = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?(:[\w.:\[\]%+-]+)?")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def rows_of(config: Requests, numbers: Collection[str] = ()) -> Iterator[Row]:
    """The rows of the source, each with the prompt's column and, where one is set, the split's.

    numbers: columns that the pipeline takes; text that stands for numbers in all rows of a .csv becomes numbers in them.
    Raises UsageError: no such source, no such column, a row that cannot be read.
    """
    prompt, split = nfc(config.prompt_column), split_column(config)
    if prompt == split:
        raise UsageError(f"requests.prompt_column and requests.split_column both name {config.prompt_column!r}.")
    for row in _rows(config, numbers):
        if prompt not in row.values:
            raise _no_column(row, prompt, "prompt_column")
        if split is not None and split not in row.values:
            raise _no_column(row, split, "split_column")
        yield row


def _no_column(row: Row, column: str, key: str) -> UsageError:
    return UsageError(f"{row.where}: no column {column!r}; it has {', '.join(row.values)}. Set requests.{key}.")


def split_column(config: Requests) -> str | None:
    """The column that names the split, if one does: the embedded wardrobe has one of its own."""
    if config.split_column is not None:
        return nfc(config.split_column)
    return "split" if _embedded(config) else None


def folder_of(config: Requests) -> Path:
    """Where relative paths of images start."""
    return user_path(config.source, "requests.source").parent


def is_lines(config: Requests) -> bool:
    """Whether the source is text with a prompt a line."""
    return config.source.lower().endswith(".txt")


def _embedded(config: Requests) -> bool:
    return config.source.partition(":")[0] == tiny.NAME


def _rows(config: Requests, numbers: Collection[str]) -> Iterator[Row]:
    if _embedded(config):
        from prefkit.tiny.source import rows as wardrobe

        for number, values in enumerate(wardrobe(config.source.partition(":")[2]), 1):
            yield Row(f"{config.source} row {number}", values)
        return
    path = user_path(config.source, "requests.source")
    if not path.exists():
        if not _may_be_on_the_hub(config.source, path):
            raise UsageError(f"requests.source: {config.source} is not there.")
        yield from _hub_rows(config)
        return
    found = read(path, text=nfc(config.prompt_column))
    yield from _as_numbers(found, numbers) if numbers and path.suffix.lower() in (".csv", ".tsv") else found


def _may_be_on_the_hub(source: str, path: Path) -> bool:
    """Whether it is written as a datasets id (owner/name or name) and not as the name of a file."""
    if path.suffix.lower() in SUFFIXES or not HUB.fullmatch(source):
        return False
    return "/" in source or "." not in source


def _as_numbers(rows: Iterable[Row], columns: Collection[str]) -> Iterator[Row]:
    """All rows, kept in memory, with numbers in those of `columns` that hold nothing else."""
    kept = list(rows)
    for column in columns:
        texts = [row.values[column] for row in kept if row.values.get(column) is not None]
        if texts and all(NUMBER.fullmatch(text) for text in texts):
            for row in kept:
                if row.values.get(column) is not None:
                    row.values[column] = _number(row.values[column])
    yield from kept


def _number(text: str) -> int | float:
    return int(text) if text.lstrip("+-").isdigit() else float(text)


def _hub_rows(config: Requests) -> Iterator[Row]:
    import datasets

    name, _, split = config.source.partition(":")
    try:
        table = datasets.load_dataset(name, split=split or "train")
    except Exception as error:  # the library raises its own, the Hub's and the network's errors
        raise UsageError(
            f"requests.source: {config.source} is neither a file here nor a dataset that could be loaded: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error
    for number, row in enumerate(table, 1):
        yield _plain_row(f"{config.source} row {number}", row)


def _plain_row(where: str, row: Any) -> Row:
    try:
        return Row(where, plain_row({nfc(name): value for name, value in row.items()}))
    except ValueError as error:
        raise UsageError(f"{where}: {error}.") from error
