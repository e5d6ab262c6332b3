"""Any table -> rows: see prefkit/tables/__init__.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prefkit.errors import UsageError
from prefkit.paths import nfc
from prefkit.tables.delimited import read_delimited
from prefkit.tables.files import regular, text_lines
from prefkit.tables.jsons import BadLine, json_items, json_lines
from prefkit.tables.values import plain_row

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".json", ".parquet")
#: rows of a Parquet file without images that are in memory at a time
MANY = 1024


class Row(NamedTuple):
    """where: file, row number from 1 and, for text, its first line. values: column -> value, None where it is missing.

    error: why this row cannot be used, where the reader was asked to go on.
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
    """The rows of a file, a few in memory at a time. The kind follows from the suffix, whatever its case.

    columns: those that are needed, where reading fewer is cheaper (Parquet). text: the column that the lines of a .txt become,
    blank ones as ''; without it a .txt is read as .csv is. shown: the file as messages name it. may_end_early: rows of .csv
    and .tsv may lack fields at their end. keep_bad: a row or line that cannot be used becomes a Row with an error, where the
    next one can still be read. Raises UsageError naming file and row.
    """
    shown = shown or str(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        regular(path, shown)
        raise UsageError(f"{shown} is none of {', '.join(SUFFIXES)}.")
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
        found = plain_row(value if "".join(value).isascii() else {nfc(name): item for name, item in value.items()})
    except ValueError as error:
        raise UsageError(f"{where}: {error}.") from error
    if len(found) != len(value):
        raise UsageError(f"{where}: two names differ only in how their accents are encoded. Rename one.")
    return found


def _parquet(path: Path, shown: str, wanted: set[str] | None) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from prefkit.store.parquet import READ_ROWS, read_rows

    regular(path, shown)
    done, at_once = 0, MANY
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        text = " ".join(str(error).split())[:160].rstrip(".")
        raise UsageError(f"{shown} cannot be read as Parquet ({text}). Fetch or write it again.") from error
    try:
        names = _columns(schema, shown, wanted)
        at_once = READ_ROWS if any(_heavy(schema.field(name).type) for name in names) else MANY
        for row in read_rows(path, names, at_once):
            done += 1
            yield row
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        text = " ".join(str(error).split())[:160]
        raise UsageError(
            f"{shown} row {done + 1} (or one of the {at_once - 1} after it): cannot be read as Parquet ({text}). Fetch the file again."
        ) from error


def _columns(schema: pa.Schema, shown: str, wanted: set[str] | None) -> list[str]:
    """Without pandas' row numbers. Raises UsageError for a name that stands twice."""
    names = [name for name in schema.names if not (name.startswith("__index_level_") and name.endswith("__"))]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UsageError(f"{shown} has two columns called {twice[0]!r}. Rename or remove one.")
    return names if wanted is None else [name for name in names if nfc(name) in wanted]


def _heavy(kind: pa.DataType) -> bool:
    """Whether values hold bytes, which are images for the most part."""
    import pyarrow.types as types

    parts: list[Callable[[Any], bool]] = [types.is_binary, types.is_large_binary, types.is_fixed_size_binary]
    if any(test(kind) for test in parts):
        return True
    return any(_heavy(kind.field(n).type) for n in range(kind.num_fields))
