"""Opens users' files, which must be regular files. Text is read as UTF-8 unless it has another byte order mark."""

from __future__ import annotations

import codecs
import errno
import io
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from prefkit.errors import UsageError
from prefkit.paths import find_file

MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # before utf-16-le, whose mark is a prefix of this mark
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
#: first bytes of a binary file that was given a text file's suffix -> message with its format and the fix
OTHER_KINDS = {
    b"PAR1": "is a Parquet file. Rename it to end in .parquet",
    b"PK\x03\x04": "is a spreadsheet (.xlsx) or a zip archive. Save the sheet as CSV, or unpack the archive",
    b"\xd0\xcf\x11\xe0": "is a spreadsheet (.xls). Save the sheet as CSV",
    b"\x1f\x8b": "is compressed with gzip. Unpack it (gunzip)",
}
MAX_LINE = 64 << 20  # characters
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def user_path(text: str, name: str) -> Path:
    """Return `text` as a path with ~ and ~user expanded. name: config key or flag, for messages. Raises UsageError."""
    if "\0" in text:
        raise UsageError(f"{name}: {text!r} contains a NUL character, which is invalid in a path.")
    try:
        path = Path(text).expanduser()
        path.stat()
    except RuntimeError as error:
        raise UsageError(f"{name}: the home folder in {text} is unknown. Write the full path.") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UsageError(f"{name}: {text[:80]}... is too long for a file name.") from error
    return find_file(path)


def regular(path: Path, shown: str) -> Path:
    """Return `path` if it is a regular file or a link to one, else raise UsageError: opening a pipe could block."""
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except FileNotFoundError as error:
        raise UsageError(f"{shown} does not exist.") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{shown} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if kind != stat.S_IFREG:
        raise UsageError(f"{shown} is {KINDS.get(kind, 'a special file')}. Name a regular file.")
    return path


def mark_of(start: bytes) -> bytes:
    """Return the byte order mark in `start`, or b"". start: the first 4 or more bytes of a file."""
    return next((mark for mark in MARKS if start.startswith(mark)), b"")


@contextmanager
def text_file(path: Path, shown: str) -> Iterator[TextIO]:
    """Open a text file without translating line ends. Raises UsageError if it cannot be opened or decoded."""
    encoding = "utf-8"
    try:
        with open(regular(path, shown), "rb") as file:
            start = file.read(8)
            for signature, remedy in OTHER_KINDS.items():
                if start.startswith(signature):
                    raise UsageError(f"{shown} {remedy}.")
            mark = mark_of(start)
            encoding = MARKS.get(mark, encoding)
            file.seek(len(mark))
            yield io.TextIOWrapper(file, encoding, newline="")
    except UnicodeDecodeError as error:
        raise UsageError(_undecodable(path, shown, encoding)) from error
    except OSError as error:
        raise UsageError(f"{shown} cannot be read: {error.strerror or error}.") from error


def text_lines(path: Path, shown: str) -> Iterator[str]:
    """Yield the lines with their line ends; only \\n, \\r\\n and \\r end a line. Raises UsageError naming the line."""
    with text_file(path, shown) as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if "\0" in line:
                raise UsageError(
                    f"{shown} line {number} contains a NUL character. Save the file as UTF-8, or remove the character."
                )
            if len(line) > MAX_LINE:
                raise UsageError(f"{shown} line {number} is longer than {MAX_LINE:,} characters.")
            yield line


def _undecodable(path: Path, shown: str, encoding: str) -> str:
    """Return a message that names the first line and byte that cannot be decoded."""
    if encoding != "utf-8":
        return f"{shown} is marked as {encoding.upper()} text, but cannot be decoded to its end. Save it as UTF-8."
    line, offset = 1, 0
    with open(path, "rb") as file:
        for raw in file:  # in UTF-8, the byte \n is always a line end, so each line can be decoded separately
            try:
                raw.decode()
            except UnicodeDecodeError as error:
                line += _line_ends(raw[: error.start])
                where = f"byte 0x{raw[error.start]:02x} at offset {offset + error.start} of the file"
                return f"{shown} line {line} is not UTF-8 text ({where}). Save the file as UTF-8."
            line += _line_ends(raw)
            offset += len(raw)
    return f"{shown} is not UTF-8 text. Save it as UTF-8."


def _line_ends(raw: bytes) -> int:
    return raw.count(b"\n") + raw.count(b"\r") - raw.count(b"\r\n")
