"""What counts as a number, and as a row of numbers: one rule for functions, classes, other processes and servers."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

from prefkit.errors import PluginError
from prefkit.plugin_guard import described

TEXTS = (str, bytes, bytearray, memoryview)


def read_number(value: Any) -> tuple[float | None, str]:
    """(a finite float, "") or (None, what it is instead).

    A number is what `float` takes: int, float, Decimal, Fraction, and an array or tensor of one element. Texts, whatever
    they say, bools, complex numbers and times are none, nor is an integer that no float can hold.
    """
    said = f"{shown(value)} ({described(value)}), which is not a number"
    if getattr(getattr(value, "dtype", None), "kind", "") in ("m", "M"):
        return None, said
    try:
        plain = value.item() if hasattr(value, "item") else value
        if isinstance(plain, (*TEXTS, bool)) or (
            isinstance(plain, numbers.Complex) and not isinstance(plain, numbers.Real)
        ):
            return None, said
        found = float(plain)
    except OverflowError:
        return None, f"{described(value)} that is too large"
    except Exception:  # whatever `item` or `__float__` of a foreign class raises
        return None, said
    return (found, "") if math.isfinite(found) else (None, str(found))


def row_of(found: Any, count: int, who: str) -> list[Any]:
    """`found` as a list of `count` entries, in order.

    A list, a tuple or another sequence, a 1-D array or tensor, or a pandas Series by position. Raises PluginError, saying
    what came instead: a dict or a set has no order that is meant, a text and a generator no numbers.
    """
    items = _entries(found)
    if items is None:
        raise PluginError(f"{who} returned {described(found)}; a list with one number per image is needed.")
    if len(items) != count:
        raise PluginError(
            f"{who} returned {len(items)} value{'s' * (len(items) != 1)} for {count} images; one each is needed."
        )
    return items


def _entries(found: Any) -> list[Any] | None:
    dimensions = getattr(found, "ndim", None)
    if isinstance(dimensions, int) and callable(getattr(found, "tolist", None)):
        timed = getattr(getattr(found, "dtype", None), "kind", "") in ("m", "M")
        return list(found.tolist()) if dimensions == 1 and not timed else None
    return list(found) if isinstance(found, Sequence) and not isinstance(found, TEXTS) else None


def shown(value: Any) -> str:
    """At most 50 characters of a value, whose own repr may raise."""
    try:
        text = repr(str(value)[:50]) if not isinstance(value, (str, bytes)) else repr(value[:50])
    except Exception:
        text = "something"
    return text
