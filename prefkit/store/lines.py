"""JSON lines with a checksum each, as in metrics.jsonl: {..., "crc": "8 hexadecimal digits"}, the CRC-32 of the rest."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefkit.errors import StoreError
from prefkit.output import warn

SEALED = re.compile(rb'(\{.*), "crc": "([0-9a-f]{8})"\}', re.DOTALL)


def dump_line(row: Mapping[str, Any]) -> str:
    """One line, with its end. row: not empty."""
    text = json.dumps(dict(row))
    return f'{text[:-1]}, "crc": "{zlib.crc32(text.encode()):08x}"}}\n'


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines that are whole, without their checksums; those that are damaged are left out with a warning.

    A last line that a kill cut short is no damage. Raises StoreError where the file cannot be read.
    """
    try:
        *whole, _ = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"{path} could not be read: {error.strerror or error}. Restore it, or remove it.") from error
    rows = [_row(line) for line in whole]
    damaged = [number for number, row in enumerate(rows, 1) if row is None]
    if damaged:
        warn(f"{path}: line {', '.join(map(str, damaged[:5]))} is damaged and left out.")
    return [row for row in rows if row is not None]


def _row(line: bytes) -> dict[str, Any] | None:
    sealed = SEALED.fullmatch(line)
    if sealed:
        line = sealed[1] + b"}"
        if zlib.crc32(line) != int(sealed[2], 16):
            return None
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
