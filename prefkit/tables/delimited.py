"""Reads delimited text (.csv, .tsv), quoted as in RFC 4180. All rows must have the same number of fields.

All values stay text, even 007, 1e5, NA and True; an empty field becomes None.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from prefkit.errors import UsageError
from prefkit.output import note
from prefkit.paths import nfc
from prefkit.tables.files import text_lines

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
#: a first line such as sep=; with which some spreadsheet programs declare the separator
DECLARATION = re.compile(r'\s*"?sep=(.)"?\s*', re.IGNORECASE)
MAX_FIELD = 16 << 20  # characters
SAMPLE_LINES = 100  # the separator is detected from these first lines


@dataclass(frozen=True)
class Header:
    """Column names ('' for an unnamed column), separator, and number of lines before the names (1 for a line sep=;)."""

    names: list[str]
    separator: str
    skipped: int

    @property
    def width(self) -> int:
        """Number of columns up to the last one with a name."""
        return max((n for n, name in enumerate(self.names, 1) if name), default=0)


def header(path: Path, shown: str) -> Header:
    """Read the column names, and detect the separator from the first lines.

    Raises UsageError for an empty file, a first line without names, or a column name that occurs twice.
    """
    head = list(islice(text_lines(path, shown), SAMPLE_LINES))
    declared = DECLARATION.fullmatch(head[0]) if head else None
    head = head[1:] if declared else head
    order = ["\t", ",", ";"] if path.suffix.lower() == ".tsv" else list(SEPARATORS)
    separator = declared[1] if declared else max(order, key=lambda s: _consistency(head, s))
    names = [nfc(name.strip()) for name in next(iter(_records(head, separator)), [])]
    if not any(names):
        if any(line.strip() for line in head):
            raise UsageError(
                f"{shown}: the first line cannot be read. It must name the columns, separated by {_word(separator)}."
            )
        raise UsageError(f"{shown} is empty: its first line must name the columns.")
    twice = [name for name, times in Counter(names).items() if name and times > 1]
    if twice:
        raise UsageError(f"{shown}: the first line names the column {twice[0]!r} twice. Rename or remove one.")
    return Header(names, separator, 1 if declared else 0)


def read_delimited(
    path: Path, shown: str, may_end_early: bool = False, keep_bad: bool = False
) -> Iterator[tuple[int, int, dict[str, str | None] | str]]:
    """Yield (row number from 1, number of its first line, values). Blank lines are skipped, except in a single column.

    may_end_early: a row may lack fields at its end. keep_bad: for a row whose fields do not match the columns, yield
    the error message instead of the values. Raises UsageError naming the row and line.
    """
    head = header(path, shown)
    csv.field_size_limit(MAX_FIELD)
    lines = islice(text_lines(path, shown), head.skipped, None)
    reader = csv.reader(lines, delimiter=head.separator, strict=True)
    shape = _Shape(head, shown, may_end_early)
    row, line, started = 0, 1, False
    while True:
        line = head.skipped + reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise UsageError(f"{shown} row {row + 1} (line {line}): {_reason(error)}") from error
        if fields is None:
            return
        if not fields and (shape.several or not started):
            continue
        if not started:
            started = True
            continue
        row += 1
        try:
            values: dict[str, str | None] | str = shape.values(fields or [""], f"{shown} row {row} (line {line})")
        except UsageError as error:
            if not keep_bad:
                raise
            values = str(error)
        yield row, line, values


class _Shape:
    """Checks that all rows have as many fields as there are columns, plus any empty fields that end the first row."""

    def __init__(self, head: Header, shown: str, may_end_early: bool) -> None:
        self.head, self.may_end_early = head, may_end_early
        self.names = head.names[: head.width]
        self.named = all(self.names)
        self.wanted: int | None = None
        self.several = len(self.names) > 1
        self.numbers = self.several and not head.names[0]  # an unnamed first column holds row numbers
        if self.numbers:
            note(f"{shown}: the first column has no name and is left out.")

    def values(self, fields: list[str], where: str) -> dict[str, str | None]:
        names = self.names
        if self.wanted is None:
            self.wanted = max(len(fields), len(names))
        short = len(fields) < self.wanted
        if short and self.may_end_early:
            fields = [*fields, *[""] * (self.wanted - len(fields))]
        if len(fields) != self.wanted or any(fields[len(names) :]) or self._slipped(fields):
            self._refuse(fields, where)
        if self.named:
            return {name: field or None for name, field in zip(names, fields)}
        values = {}
        for number, (name, field) in enumerate(zip(names, fields)):
            if name:
                values[name] = field or None
            elif field and not (number == 0 and self.numbers):
                raise UsageError(
                    f"{where}: column {number + 1} has a value ({field[:40]!r}) but no name. Name it in the first line."
                )
        return values

    def _slipped(self, fields: list[str]) -> bool:
        """True if an extra empty field at the end may come from commas in an unquoted text, such as 'a dress, red,'."""
        return len(fields) > len(self.head.names) and any(field.startswith(" ") for field in fields[1:])

    def _refuse(self, fields: list[str], where: str) -> None:
        names = [name or "(no name)" for name in self.names]
        expected = f"the first line names {len(names)} ({', '.join(names)[:100]})"
        if len(fields) == len(names):
            expected = f"the first row has {self.wanted}"
        text = f"{where} has {len(fields)} field{'s' * (len(fields) != 1)}, but {expected}."
        if len(fields) < len(names):
            text += (
                f" Separate the fields with {_word(self.head.separator)}, and leave a field empty if it has no value."
            )
        if len(fields) > len(names):
            example = self.head.separator.join(fields).strip()[:60]
            text += f' Put quotes around a text that contains {_word(self.head.separator)}, as in "{example}".'
        raise UsageError(text)


def _consistency(head: list[str], separator: str) -> tuple[float, int]:
    """Return (fraction of records with as many fields as the first, its number of fields); (0, 0) below two fields."""
    records = _records(head, separator)
    width = len(records[0]) if records else 0
    if width < 2:
        return 0.0, 0
    return sum(len(record) == width for record in records) / len(records), width


def _records(head: list[str], separator: str) -> list[list[str]]:
    """Parse the lines into records, skipping blank lines, until a record is unreadable or incomplete."""
    records: list[list[str]] = []
    with suppress(csv.Error):
        for record in csv.reader(head, delimiter=separator, strict=True):
            if record:
                records.append(record)
    return records


def _word(separator: str) -> str:
    return SEPARATORS.get(separator, repr(separator))


def _reason(error: csv.Error) -> str:
    text = str(error)
    if "field limit" in text:
        return f"a field is longer than {MAX_FIELD:,} characters. Is a closing quote missing?"
    if "unexpected end" in text:
        return "an opening quote has no closing quote. Add it, or write a quote inside a text as two quotes."
    return f"{text}. Put quotes around the whole text, and write a quote inside it as two quotes."
