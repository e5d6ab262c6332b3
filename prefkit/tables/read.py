"""Reads the rows of a table in any supported format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prefkit.errors import UsageError
from prefkit.output import message
from prefkit.paths import nfc
from prefkit.tables.delimited import read_delimited
from prefkit.tables.files import regular, text_lines
from prefkit.tables.jsons import BadLine, json_items, json_lines
from prefkit.tables.values import plain_row

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".json", ".parquet")
SCALAR_ROWS = 1024  # rows in memory at a time, for a Parquet file without images


class Row(NamedTuple):
    """One row of a table.

    where: file, row number from 1 and, in text files, the line where the row starts. values: column -> value, None if
    missing. error: the reason why the row cannot be used (only with `keep_bad`).
    """

    where: str
    values: dict[str, Any]
    error: str | None = None


def read(
    path: Path,
    columns: Iterable[str] | None = None,
    text: str | None = None,
    shown: str = "",
    may_end_early: bool = False,
    keep_bad: bool = False,
) -> Iterator[Row]:
    """Read the rows of a file, with only a few in memory at a time. The suffix determines the format.

    columns: names of the columns to read from Parquet, to save time (ignored for other formats). text: name of the
    column that holds the lines of a .txt file, blank lines as ''; if None, .txt is read as .csv. shown: name of the
    file in messages. may_end_early: rows of .csv and .tsv may lack fields at their end. keep_bad: an unusable row
    becomes a Row with an error, provided that the next row can still be read. Raises UsageError naming the file and
    row.
    """
    shown = shown or str(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        regular(path, shown)
        raise UsageError(f"{shown} has an unsupported suffix; use one of {', '.join(SUFFIXES)}.")
    if suffix == ".txt" and text is not None:
        for number, line in enumerate(text_lines(path, shown), 1):
            yield Row(f"{shown} line {number}", {text: line.strip()})
    elif suffix in (".csv", ".tsv", ".txt"):
        for row, number, values in read_delimited(path, shown, may_end_early, keep_bad):
            where = f"{shown} row {row} (line {number})"
            yield Row(where, {}, values) if isinstance(values, str) else Row(where, dict(values))
    elif suffix == ".jsonl":
        for row, (number, value) in enumerate(json_lines(path, shown, keep_bad), 1):
            yield _row(f"{shown} row {row} (line {number})", value, keep_bad)
    elif suffix == ".json":
        for number, value in enumerate(json_items(path, shown, lines=True), 1):
            yield _row(f"{shown} row {number}", value, keep_bad)
    else:
        wanted = None if columns is None else {nfc(name) for name in columns}
        for number, value in enumerate(_parquet(path, shown, wanted), 1):
            yield _row(f"{shown} row {number}", value, keep_bad)


def _row(where: str, value: Any, keep_bad: bool) -> Row:
    try:
        return Row(where, _values(where, value))
    except UsageError as error:
        if not keep_bad:
            raise
        return Row(where, {}, str(error))


def _values(where: str, value: Any) -> dict[str, Any]:
    if isinstance(value, BadLine):
        raise UsageError(value.text)
    if not isinstance(value, dict):
        raise UsageError(
            f'{where}: {str(value)[:60]!r} is not an object with named values, such as {{"prompt": "..."}}.'
        )
    try:
        row = plain_row(value if "".join(value).isascii() else {nfc(name): item for name, item in value.items()})
    except ValueError as error:
        raise UsageError(f"{where}: {error}.") from error
    if len(row) != len(value):
        raise UsageError(f"{where}: two column names differ only in how accents are encoded. Rename one.")
    return row


def _parquet(path: Path, shown: str, wanted: set[str] | None) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from prefkit.store.parquet import read_rows

    regular(path, shown)
    done, at_once = 0, 0
    try:
        schema = pq.read_schema(path)
        names = _columns(schema, shown, wanted)
        at_once = min((_rows_at_once(schema.field(name).type) for name in names), default=SCALAR_ROWS)
        for row in read_rows(path, names, at_once):
            done += 1
            yield row
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        rows = f" row {done + 1} (or one of the {at_once - 1} after it):" if at_once else ""
        text = message(str(error), 160).rstrip(".")
        raise UsageError(f"{shown}{rows} cannot be read as Parquet ({text}). Download or write it again.") from error


def _columns(schema: pa.Schema, shown: str, wanted: set[str] | None) -> list[str]:
    """Return the names of the wanted columns, without pandas' index. Raises UsageError for a name that occurs twice."""
    names = [name for name in schema.names if not (name.startswith("__index_level_") and name.endswith("__"))]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UsageError(f"{shown} has two columns called {twice[0]!r}. Rename or remove one.")
    return names if wanted is None else [name for name in names if nfc(name) in wanted]


def _rows_at_once(kind: pa.DataType) -> int:
    """Return how many rows of a column to hold in memory: few with an image per row, one with a list of images."""
    from pyarrow.types import is_fixed_size_list, is_large_list, is_list

    from prefkit.store.parquet import READ_ROWS

    if not _holds_bytes(kind):
        return SCALAR_ROWS
    return 1 if is_list(kind) or is_large_list(kind) or is_fixed_size_list(kind) else READ_ROWS


def _holds_bytes(kind: pa.DataType) -> bool:
    """True if values of this type contain bytes, which are usually images."""
    from pyarrow.types import is_binary, is_fixed_size_binary, is_large_binary

    if is_binary(kind) or is_large_binary(kind) or is_fixed_size_binary(kind):
        return True
    return any(_holds_bytes(kind.field(n).type) for n in range(kind.num_fields))
