"""Helpers that importers of tables share: rows, image cells, verdicts from ranks, and errors of single rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from prefkit.hub.importing.readers import Row, files, is_saved, rows
from prefkit.hub.importing.records import Item, Picture, Workplace
from prefkit.hub.importing.walk import leave_rest
from prefkit.paths import embedded, find_file, named, shown
from prefkit.types import Comparison, digest

#: errors that importers raise for an invalid cell; they make only the row of that cell fail
FAULTS = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, OSError)


def table_rows(source: str, work: Workplace, columns: list[str] | None = None) -> Iterator[Row]:
    """Yield the rows of `source`, then count the unread files in it as left out. Raises UsageError like `rows`."""
    yield from rows(source, columns)
    path = Path(source).expanduser()
    if path.is_dir() and not is_saved(path):
        leave_rest(path, files(path), work)


def items(rows: Iterable[Row], item: Callable[[Row], Item]) -> Iterator[Item]:
    """Yield item(row) for each row; a row that cannot be used becomes an Item with an error."""
    for row in rows:
        try:
            yield item(row) if row.error is None else Item(row.where, error=row.error)
        except FAULTS as error:
            yield Item(row.where, error=reason(error))


def reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def picture(key: str, row: Row, column: str, model: str, seed: int | None = None) -> Picture:
    """Return the image in `column` of a row. model: the column with the model's name, if any. Raises ValueError."""
    try:
        data, path = image_cell(row.values.get(column), row.folder)
    except FAULTS as error:
        raise ValueError(f"{column}: {reason(error)}") from error
    name = row.values.get(model)
    return Picture(key, data, path, seed, {"model": name} if name else {})


def image_cell(
    value: Any, folder: Path | None, trusted: bool = False, root: Path | None = None
) -> tuple[bytes | None, Path | None]:
    """Return (bytes, None) or (None, path) for an image cell: bytes, {bytes, path}, a data URI, base64, or a file path.

    folder: the folder of the table; None for rows from the Hub, which must not name local files. trusted: the user
    wrote the table, so absolute paths (and ~) may lead anywhere; relative paths must stay below `root` (default:
    `folder`). Raises ValueError for anything else, and for URLs.
    """
    if isinstance(value, dict):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes):
        return value, None
    if not isinstance(value, str) or not value.strip():
        raise ValueError("the image is missing")
    data = embedded(value)
    if data is not None:
        return data, None
    if re.match(r"[a-z]+://", value):
        raise ValueError(
            f"the image is a web address ({shown(value)}), which import does not download. Download it first"
        )
    if folder is None:
        raise ValueError(f"the image is a path ({shown(value)}) without bytes. Download the dataset and import it")
    if "\\" in value and not (folder / value).exists():
        value = value.replace("\\", "/")  # written on Windows
        if value[1:2] == ":":
            raise ValueError(f"the path {shown(value)!r} starts with a Windows drive; write a path of this machine")
    if trusted:
        return None, named(folder, value, root)
    if Path(value).is_absolute() or ".." in Path(value).parts:
        raise ValueError(f"the image path {shown(value)!r} leads out of {folder}. Use a path inside it")
    return None, find_file(folder / value)


def ranked(ranks: Sequence[Any], judge: str) -> list[Comparison]:
    """Return a verdict for every two ranked images: the smaller rank wins, equal ranks tie, rank None is skipped."""
    pairs = [(i, j) for i, j in combinations(range(len(ranks)), 2) if ranks[i] is not None and ranks[j] is not None]
    return [Comparison(str(i), str(j), outcome(ranks[j], ranks[i]), judge) for i, j in pairs]


def outcome(a: float, b: float) -> str:
    """Return the side with more votes: a, b or tie."""
    return "a" if a > b else "b" if b > a else "tie"


def judge_name(layout: str, user: Any) -> str:
    """Return a pseudonym for an annotator; `people` for an anonymous one."""
    return "people" if user is None else "user-" + digest(layout, str(user), length=12)
