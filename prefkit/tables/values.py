"""Converts values from any file format to plain Python: JSON types and bytes.

The same content gives the same values in every format: NaN and NaT become None, dates become ISO text, arrays become
lists. In a nested object, a key without a value is left out, because Parquet cannot distinguish it from a missing key.
"""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Mapping
from typing import Any

from prefkit.paths import nfc

MAX_DEPTH = 100
MAX_INTEGER = 1 << 64


def plain_row(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Convert all values of a row with `plain`; missing values become None. Raises ValueError."""
    return {name: value if type(value) is str else plain(value) for name, value in row.items()}


def plain(value: Any, depth: int = 1) -> Any:
    """Convert a value; an object of an unknown type, such as an image, is returned unchanged.

    Raises ValueError for nesting deeper than MAX_DEPTH and for whole numbers that exceed 64 bits.
    """
    kind = type(value)
    if kind is str or value is None or kind is bool or kind is bytes:
        return value
    if kind is float:
        return None if value != value else value
    if kind is int:
        if abs(value) >= MAX_INTEGER:
            raise ValueError(
                f"a whole number of {len(str(abs(value)))} digits is too large; write it as text, in quotes"
            )
        return value
    if depth > MAX_DEPTH:
        raise ValueError(f"a value is nested more than {MAX_DEPTH} levels deep")
    if kind is list:
        return [plain(item, depth + 1) for item in value]
    if kind is dict:
        items = ((str(name), plain(item, depth + 1)) for name, item in value.items())
        return {name: item for name, item in items if item is not None}
    return _other(value, depth)


def _other(value: Any, depth: int) -> Any:
    if type(value).__name__ in ("NaTType", "NAType"):  # types of pandas, checked by name to avoid the import
        return None
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return str(value)
    if isinstance(value, decimal.Decimal):
        if not value.is_finite():
            return plain(float(value), depth)
        return plain(int(value) if value.as_tuple().exponent == 0 else float(value), depth)
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, Mapping):
        return plain(dict(value), depth)
    if isinstance(value, tuple):
        return plain(list(value), depth)
    return plain(value.tolist(), depth) if hasattr(value, "tolist") else value  # numpy's arrays and scalars


def id_text(value: Any) -> str:
    """Convert an id to NFC text. 7 and 7.0 both become '7': an integer column with missing values may hold floats."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return nfc(str(value))
