"""Conversion of returned values to numbers, the same for functions, classes, other processes and servers."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

from prefkit.errors import PluginError
from prefkit.plugin_guard import described

TEXTS = (str, bytes, bytearray, memoryview)


def read_number(value: Any) -> tuple[float | None, str]:
    """(a finite float, "") or (None, a description of the value).

    A number is whatever `float` accepts: int, float, Decimal, Fraction, an array or tensor of one element. Texts, bools,
    complex numbers, times and integers beyond the range of a float are not numbers.
    """
    problem = f"{shown(value)} ({described(value)}), which is not a number"
    if _is_time(value):
        return None, problem
    try:
        plain = value.item() if hasattr(value, "item") else value
        if isinstance(plain, (*TEXTS, bool)) or (
            isinstance(plain, numbers.Complex) and not isinstance(plain, numbers.Real)
        ):
            return None, problem
        number = float(plain)
    except OverflowError:
        return None, f"{described(value)} that is too large"
    except Exception:  # `item` and `__float__` of a plug-in's class may raise anything
        return None, problem
    return (number, "") if math.isfinite(number) else (None, str(number))


def row_of(values: Any, count: int, who: str) -> list[Any]:
    """`values` as a list of `count` entries, in order.

    Accepts a list, a tuple or another sequence, a 1-D array or tensor, and a pandas Series by position. Raises PluginError
    for anything else: dicts and sets have no reliable order, texts and generators are mistakes.
    """
    entries = _entries(values)
    if entries is None:
        raise PluginError(f"{who} returned {described(values)}; it must return a list with one number per image.")
    if len(entries) != count:
        plural = "s" * (len(entries) != 1)
        raise PluginError(f"{who} returned {len(entries)} value{plural} for {count} images; it must return one each.")
    return entries


def _entries(values: Any) -> list[Any] | None:
    dimensions = getattr(values, "ndim", None)
    if isinstance(dimensions, int) and callable(getattr(values, "tolist", None)):
        return list(values.tolist()) if dimensions == 1 and not _is_time(values) else None
    return list(values) if isinstance(values, Sequence) and not isinstance(values, TEXTS) else None


def _is_time(value: Any) -> bool:
    """True for numpy's and pandas' datetime64 and timedelta64."""
    return getattr(getattr(value, "dtype", None), "kind", "") in ("m", "M")


def shown(value: Any) -> str:
    """At most 50 characters of a value, even if its own repr raises."""
    try:
        return repr(str(value)[:50]) if not isinstance(value, (str, bytes)) else repr(value[:50])
    except Exception:
        return "something"
