"""Sources of requests: a table, a text file with one prompt per line, the embedded wardrobe, or a Hub dataset.

A published set of prompts is given by its name (generate/prompt_sets.py).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from prefkit import tiny
from prefkit.config import Requests
from prefkit.errors import UsageError
from prefkit.generate import prompt_sets
from prefkit.paths import nfc
from prefkit.tables import SUFFIXES, Row, read, user_path
from prefkit.tables.values import plain_row

HUB = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?(:[\w.:\[\]%+-]+)?")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def rows_of(config: Requests, numbers: Collection[str] = ()) -> Iterator[Row]:
    """Yield the rows of the source, after checking that each has the prompt column and the split column, if one is set.

    numbers: columns of a .csv or .tsv to convert to numbers if all their values are numbers. Raises UsageError for a
    missing source or column, or a row that cannot be read.
    """
    columns = {"prompt_column": nfc(config.prompt_column), "split_column": split_column(config)}
    if columns["prompt_column"] == columns["split_column"]:
        raise UsageError(f"requests.prompt_column and requests.split_column both name {config.prompt_column!r}.")
    for row in _rows(config, numbers):
        for key, column in columns.items():
            if column is not None and column not in row.values:
                raise UsageError(
                    f"{row.where}: no column {column!r}; its columns are {', '.join(row.values)}. Set requests.{key}."
                )
        yield row


def split_column(config: Requests) -> str | None:
    """Return the name of the split column, None if there is none."""
    if config.split_column is not None:
        return nfc(config.split_column)
    return "split" if _embedded(config) else None


def folder_of(config: Requests) -> Path:
    """Return the folder in which relative image paths start."""
    return user_path(config.source, "requests.source").parent


def is_lines(config: Requests) -> bool:
    return config.source.lower().endswith(".txt")


def _embedded(config: Requests) -> bool:
    return config.source.partition(":")[0] == tiny.NAME


def _rows(config: Requests, numbers: Collection[str]) -> Iterator[Row]:
    source = config.source
    if _embedded(config):
        from prefkit.tiny.source import rows as wardrobe

        for number, values in enumerate(wardrobe(source.partition(":")[2]), 1):
            yield Row(f"{source} row {number}", values)
        return
    path = user_path(source, "requests.source")
    if path.exists():
        rows = read(path, text=nfc(config.prompt_column))
        yield from _as_numbers(rows, numbers) if numbers and path.suffix.lower() in (".csv", ".tsv") else rows
        return
    file_name = path.suffix.lower() in SUFFIXES or not HUB.fullmatch(source)
    if file_name or ("/" not in source and "." in source):
        raise UsageError(f"requests.source: {source} does not exist. Give an existing file, or a Hub dataset's id.")
    yield from _hub_rows(source)


def _as_numbers(rows: Iterable[Row], columns: Collection[str]) -> Iterator[Row]:
    """Yield all rows, after converting each of `columns` that holds only numbers. Keeps all rows in memory."""
    rows = list(rows)
    for column in columns:
        cells = [row.values for row in rows if row.values.get(column) is not None]
        if all(NUMBER.fullmatch(values[column]) for values in cells):
            for values in cells:
                text = values[column]
                values[column] = int(text) if text.lstrip("+-").isdigit() else float(text)
    yield from rows


def _hub_rows(source: str) -> Iterator[Row]:
    import datasets

    name, _, split = source.partition(":")
    known = source in prompt_sets.PROMPT_SETS
    try:
        # the rows of a prompt set are read here, so that its errors are caught here
        table = list(prompt_sets.rows(source)) if known else datasets.load_dataset(name, split=split or "train")
    except Exception as error:  # errors of the library, the Hub and the network
        raise UsageError(
            f"requests.source: {source} does not exist as a file, and could not be loaded from the Hub as a dataset"
            f"{f' ({prompt_sets.PROMPT_SETS[source].repo})' if known else ''}: {' '.join(str(error).split())[:200]}"
        ) from error
    for number, row in enumerate(table, 1):
        yield _plain_row(f"{source} row {number}", row)


def _plain_row(where: str, row: Any) -> Row:
    try:
        return Row(where, plain_row({nfc(name): value for name, value in row.items()}))
    except ValueError as error:
        raise UsageError(f"{where}: {error}.") from error
