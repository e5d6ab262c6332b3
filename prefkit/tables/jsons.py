"""Reads JSON values one by one: one per line (.jsonl), or the items of a list (.json)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefkit.errors import UsageError
from prefkit.tables.files import text_file, text_lines

CHUNK = 1 << 20
#: maximum number of characters in one item of a list
MAX_MEMBER = 64 << 20


@dataclass(frozen=True)
class BadLine:
    """Placeholder for the value of a line that is not valid JSON; `text` is the error message."""

    text: str


def json_lines(path: Path, shown: str, keep_bad: bool = False) -> Iterator[tuple[int, Any]]:
    """Yield (line number, value) for every line that is not blank. Raises UsageError naming the row and line.

    keep_bad: for an invalid line, yield a BadLine instead of raising.
    """
    row = 0
    for number, line in enumerate(text_lines(path, shown), 1):
        text = line.strip(" \t\r\n")
        if not text:
            continue
        row += 1
        try:
            value, end = DECODER.raw_decode(text)
            if end != len(text):
                raise ValueError("more text follows the object on the same line")
        except (ValueError, RecursionError) as error:
            text = f"{shown} row {row} (line {number}): not valid JSON ({_reason(error)})."
            if not keep_bad:
                raise UsageError(text) from error
            value = BadLine(text)
        yield number, value


def json_items(path: Path, shown: str = "", lines: bool = False) -> Iterator[Any]:
    """Yield the items of a JSON list without reading the whole file, which may have gigabytes.

    lines: also accept a file of consecutive objects without a list. Raises UsageError naming a row of invalid JSON.
    """
    shown = shown or str(path)
    number = 0
    try:
        with text_file(path, shown) as file:
            for value in _members(file.read, lines):
                number += 1
                yield value
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{shown} row {number + 1}: not valid JSON ({_reason(error)}).") from error


def _members(read: Any, lines: bool) -> Iterator[Any]:
    """Yield the items. Raises ValueError for invalid JSON and RecursionError for JSON that is nested too deeply."""
    buffer, position, ended = read(CHUNK).lstrip(), 0, False
    listed = buffer.startswith("[")
    if not listed and not (lines and buffer.startswith("{")):
        if lines and not buffer:
            return
        raise ValueError("the file has neither a list nor objects" if lines else "the file does not start with a list")
    position = 1 if listed else 0
    while True:
        while position < len(buffer) and buffer[position] in " \t\r\n,":
            position += 1
        if listed and buffer[position : position + 1] == "]":
            _check_end(buffer[position + 1 :], read)
            return
        if not listed and ended and position == len(buffer):
            return
        try:
            value, end = DECODER.raw_decode(buffer, position)
            complete = end < len(buffer) or ended  # a number may continue in the next chunk
        except ValueError:
            if ended:
                raise
            complete = False
        if not complete:
            more = read(max(CHUNK, len(buffer)))
            ended, buffer, position = not more, buffer[position:] + more, 0
            if len(buffer) > MAX_MEMBER:
                raise ValueError("one item is larger than 64 MB")
            continue
        position = end
        yield value


def _check_end(rest: str, read: Any) -> None:
    """Raise ValueError if anything but whitespace follows the list: rows after the list would be lost silently."""
    while rest and not rest.strip():
        rest = read(CHUNK)
    if rest.strip():
        raise ValueError("more text follows the end of the list; put all rows into one list")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(n for n in names if names.count(n) > 1)!r} occurs twice in one object")
    return values


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _constant(text: str) -> float:
    if text != "NaN":
        raise ValueError(f"{text} is not a number")
    return math.nan


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if "set_int_max_str_digits" in str(error):  # Python's message gives advice that users cannot follow
        return "a whole number is too large"
    return " ".join(str(error).split())[:200]


DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_number, parse_constant=_constant)
