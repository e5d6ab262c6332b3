"""Values of any source as plain Python: what JSON can hold, and bytes.

The same content gives equal values whatever it is kept in: NaN and NaT are None, dates are ISO text, arrays are lists, and a
key of a nested object without a value is left out (Parquet cannot tell it from a key that is not there).
"""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Mapping
from typing import Any

DEEPEST = 100
LARGEST = 1 << 64


def plain_row(row: Mapping[Any, Any]) -> dict[str, Any]:
    """The columns of a row, those without a value as None. Raises ValueError as `plain`."""
    return {name: value if type(value) is str else plain(value) for name, value in row.items()}


def plain(value: Any, depth: int = 1) -> Any:
    """Objects that are none of the known kinds (an image, say) stay as they are.

    Raises ValueError for what is nested too deeply and for whole numbers beyond 64 bits.
    """
    kind = type(value)
    if kind is str or value is None or kind is bool or kind is bytes:
        return value
    if kind is float:
        return None if value != value else value
    if kind is int:
        if abs(value) >= LARGEST:
            raise ValueError(
                f"a whole number of {len(str(abs(value)))} digits is too large; write it as text, in quotes"
            )
        return value
    if depth > DEEPEST:
        raise ValueError(f"a value is nested more than {DEEPEST} levels deep")
    if kind is list:
        return [plain(item, depth + 1) for item in value]
    if kind is dict:
        found = ((str(name), plain(item, depth + 1)) for name, item in value.items())
        return {name: item for name, item in found if item is not None}
    return _other(value, depth)


def _other(value: Any, depth: int) -> Any:
    if type(value).__name__ in ("NaTType", "NAType"):  # pandas', which is not imported for this
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
    if hasattr(value, "tolist"):  # numpy's arrays and scalars
        return plain(value.tolist(), depth)
    return value
